//! Sets of policies as an operator of many teams and servers has them.

/// The policies that concern a call of `git/tool_7` by the client `ci`, in the groups `bots` and
/// `eu`. Six of them look at the call: its arguments, the time, the address, the session.
const CONCERNED: [&str; 10] = [
    r#"permit (principal in G::"bots", action == A::"call_tool", resource in S::"git");"#,
    r#"permit (principal in G::"bots", action in A::"use", resource == T::"git/tool_7")
       when { context.args.hasTag("/repo") && context.args.getTag("/repo") like "acme/*" };"#,
    r#"permit (principal in G::"eu", action == A::"call_tool", resource in S::"git")
       when { resource.claims.read_only };"#,
    r#"permit (principal, action == A::"call_tool", resource is P::Tool)
       when { principal in G::"admins" };"#,
    r#"forbid (principal, action == A::"call_tool", resource is P::Tool)
       when { resource.claims.destructive } unless { principal in G::"admins" };"#,
    r#"forbid (principal, action == A::"call_tool", resource in S::"git")
       when { context.now < datetime("2020-01-01") };"#,
    r#"forbid (principal in G::"bots", action in A::"use", resource)
       when { context.session_calls > 1000 };"#,
    r#"forbid (principal, action == A::"call_tool", resource in S::"git")
       when { context has source_ip && context.source_ip.isInRange(ip("192.0.2.0/24")) };"#,
    r#"forbid (principal in G::"eu", action == A::"call_tool", resource)
       when { context.args.hasTag("/force") && context.args.getTag("/force") == "true" };"#,
    r#"forbid (principal, action in A::"from_client", resource in S::"git")
       unless { context.transport == "http" || context.transport == "unix" };"#,
];

/// This many policies, ten of which concern the call: the others are about other teams, clients,
/// servers, tools and actions.
pub fn policies(count: usize) -> String {
    let mut text = CONCERNED.join("\n");
    for at in CONCERNED.len()..count {
        let other = match at % 6 {
            0 => format!(
                r#"permit (principal in G::"team-{at}", action == A::"call_tool", resource in S::"server-{at}")
                   when {{ context.args.hasTag("/repo") }};"#
            ),
            1 => format!(
                r#"permit (principal in G::"team-{at}", action in A::"use", resource == T::"git/special_{at}")
                   when {{ context.session_calls < {at} }};"#
            ),
            2 => format!(
                r#"forbid (principal == P::Client::"client-{at}", action, resource in S::"git")
                   when {{ context.now > datetime("2026-01-01") }};"#
            ),
            3 => format!(
                r#"permit (principal, action == A::"read_resource", resource in S::"server-{at}")
                   when {{ resource.uri like "note://*" }};"#
            ),
            4 => format!(
                r#"forbid (principal in G::"team-{at}", action == A::"call_tool", resource is P::Tool)
                   when {{ resource.claims.open_world && context has source_ip }};"#
            ),
            _ => format!(
                r#"permit (principal in G::"team-{at}", action == A::"get_prompt", resource in S::"git");"#
            ),
        };
        text.push('\n');
        text.push_str(&other);
    }
    for (short, long) in [
        ("G::", "P::Group::"),
        ("A::", "P::Action::"),
        ("S::", "P::Server::"),
        ("T::", "P::Tool::"),
        ("P::", "Portcullis::"),
    ] {
        text = text.replace(short, long);
    }
    text
}
