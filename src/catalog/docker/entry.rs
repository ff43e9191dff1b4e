//! One server of Docker's catalogs.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    draft::Draft,
    mount::{self, NoMount},
    node::Node,
    object::{LocatedText, Object},
    options::Options,
    report::{Location, Report, brief},
    secret_heuristics::endpoint,
    server::{Image, Run, Secret, Server, Tool, Transport},
    template::{Into, TemplateError, fill, is_template},
    values::server_settings,
};

/// Reads an entry of a catalog. `key` is the name if the entry does not have one.
pub(super) fn read(
    key: Option<LocatedText<'_>>,
    node: &Node,
    options: &Options,
    report: &mut Report,
) -> Option<Server> {
    let mut entry = Object::of(node, "a server", report)?;
    let place = entry.place;
    let own = entry.text("name", report);
    let named = match (key, own) {
        (Some(key), Some(own)) if key.text != own.text => {
            let text = format!(
                "it is `{}` to the catalog and `{}` to itself",
                brief(key.text),
                brief(own.text)
            );
            report.problem(own.place, text);
            key
        }
        (Some(named), _) | (None, Some(named)) => named,
        (None, None) => {
            report.problem(place, "the server has no `name`");
            return None;
        }
    };
    let mut draft = Draft::of(named.text, options, report, named.place)?;
    entry.describing(&[
        "icon",
        "readme",
        "metadata",
        "dateAdded",
        "upstream",
        "source",
        "readmeUrl",
        "toolsUrl",
        "ref",
        "meta",
        "about",
        "dynamic",
        "requirement",
    ]);
    draft.title = entry.text("title", report).map(|located| located.text.to_owned());
    draft.description = entry.text("description", report).map(|located| located.text.to_owned());
    policy(&mut entry, report);

    let schemas = entry.list("config", report);
    let values = server_settings(
        schemas,
        options.values.get(named.text),
        options.theirs.get(named.text),
        named.text,
        report,
    );
    let reader = Reader { values: &values };

    let kind = entry.text("type", report);
    let image = entry.text("image", report);
    let sse = entry.text("sseEndpoint", report);
    let remote = entry.map("remote", report);
    let command = entry.texts("command", report);
    let volumes = entry.texts("volumes", report);
    let user = entry.text("user", report);
    secrets(&mut draft, &mut entry, report);
    let tokens = oauth(&mut draft, &mut entry, report);
    environment(&mut draft, &mut entry, &reader, report);
    egress(&mut draft, &mut entry, kind.map_or(place, |kind| kind.place), report);
    tools(&mut draft, &mut entry, report);
    if entry.flag("longLived", report) == Some(true) {
        draft.stays = true;
    }
    for host in entry.texts("extraHosts", report) {
        report.left_out(host.place, "names of hosts that the catalog makes up are not taken");
    }
    if let Some(prefix) = entry.text("prefix", report) {
        report
            .left_out(prefix.place, "what stands before names of tools is yours to say: `prefix`");
    }
    entry.rest(report);

    let run = match kind.map(|kind| kind.text) {
        Some("server") | None if image.is_some() => container(
            &mut draft,
            &ContainerSettings { image, command, volumes, user },
            &reader,
            report,
        ),
        Some("remote") | None => elsewhere(&draft, remote, sse, &tokens, place, report),
        Some("server") => {
            report.problem(place, "a server of this type has an `image`");
            None
        }
        Some("poci") => {
            report.problem(
                place,
                "it is not a server but a set of images, one for each call of a tool (`poci`), which \
                 cannot be run here",
            );
            None
        }
        Some(other) => {
            let text =
                format!("`{}` is not a type of server: server, remote or poci", brief(other));
            report.problem(kind.map_or(place, |kind| kind.place), text);
            None
        }
    }?;
    draft.finish(run, report)
}

/// The catalog's options for running a container.
struct ContainerSettings<'a> {
    image: Option<LocatedText<'a>>,
    command: Vec<LocatedText<'a>>,
    volumes: Vec<LocatedText<'a>>,
    user: Option<LocatedText<'a>>,
}

struct Reader<'a> {
    values: &'a Value,
}

impl Reader<'_> {
    fn fill(
        &self,
        located: LocatedText<'_>,
        into: Into,
        report: &mut Report,
    ) -> Option<Vec<String>> {
        match fill(located.text, self.values, into) {
            Ok(filled) => Some(filled),
            Err(error @ TemplateError::Others(_)) => {
                report.left_out(located.place, format!("{error}, and not for this one to read"));
                None
            }
            Err(error) => {
                report.problem(located.place, error.to_string());
                None
            }
        }
    }
}

/// Applies the decision of the catalog's curator, if there is one.
fn policy(entry: &mut Object<'_>, report: &mut Report) {
    let Some(mut policy) = entry.map("policy", report) else { return };
    let allowed = policy.flag("allowed", report);
    let reason = policy.text("reason", report);
    let error = policy.text("error", report);
    if allowed != Some(true) || error.is_some() {
        let why = reason.or(error).map_or("", |located| located.text);
        report.problem(policy.place, format!("its catalog does not allow it: {}", brief(why)));
    }
    policy.rest(report);
}

fn container(
    draft: &mut Draft<'_>,
    settings: &ContainerSettings<'_>,
    reader: &Reader<'_>,
    report: &mut Report,
) -> Option<Run> {
    let located = settings.image?;
    let image = located
        .text
        .parse::<Image>()
        .map_err(|error| report.problem(located.place, error.to_string()))
        .ok()?;
    let mut arguments = Vec::new();
    for located in &settings.command {
        let Some(filled) = reader.fill(*located, Into::Argument, report) else { continue };
        if filled.is_empty() {
            report.left_out(
                located.place,
                format!("the argument `{}` has no value", brief(located.text)),
            );
        }
        if located.text.contains('$') {
            report.fact(
                located.place,
                format!(
                    "`{}` is passed on as it is: nothing is put in for variables",
                    brief(located.text)
                ),
            );
        }
        arguments.extend(filled);
    }
    draft.arguments_hold_no_secret(&arguments, located.place, report);
    for located in &settings.volumes {
        volume(draft, *located, reader, report);
    }
    if let Some(located) = settings.user {
        match reader.fill(located, Into::User, report).as_deref() {
            Some([user]) => draft.user(user, located.place, report),
            Some(_) => report.left_out(located.place, "the user has no value"),
            None => {}
        }
    }
    Some(Run::Image { image, arguments })
}

fn volume(
    draft: &mut Draft<'_>,
    located: LocatedText<'_>,
    reader: &Reader<'_>,
    report: &mut Report,
) {
    let Some(filled) = reader.fill(located, Into::Volume, report) else { return };
    if filled.is_empty() {
        report
            .left_out(located.place, format!("the volume `{}` has no value", brief(located.text)));
    }
    for text in filled {
        match mount::read(&text) {
            Ok(mount) => draft.mount(mount, located.place, report),
            Err(error @ (NoMount::Machine | NoMount::Volume)) => {
                report.left_out(located.place, format!("`{}`: {error}", brief(&text)));
            }
            Err(error) => report.problem(located.place, format!("`{}`: {error}", brief(&text))),
        }
    }
}

fn secrets(draft: &mut Draft<'_>, entry: &mut Object<'_>, report: &mut Report) {
    for mut secret in entry.maps("secrets", report) {
        let place = secret.place;
        let name = secret.text("name", report);
        let env = secret.text("env", report);
        let about = secret.text("description", report).map(|located| located.text.to_owned());
        secret.describing(&["example", "required"]);
        secret.rest(report);
        match (name, env) {
            (Some(name), Some(env)) => {
                let about = about.unwrap_or_else(|| name.text.to_owned());
                draft.secret(env, Some(about), report);
            }
            _ => report.problem(place, "a secret has a `name` and an `env`"),
        }
    }
}

/// The variables of tokens from OAuth flows, which are not run here.
fn oauth<'a>(
    draft: &mut Draft<'_>,
    entry: &mut Object<'a>,
    report: &mut Report,
) -> Vec<LocatedText<'a>> {
    let mut tokens = Vec::new();
    let Some(mut oauth) = entry.map("oauth", report) else { return tokens };
    oauth.describing(&["scopes"]);
    for mut provider in oauth.maps("providers", report) {
        let who = provider.text("provider", report);
        let env = provider.text("env", report);
        provider.describing(&["secret"]);
        let who = who.map_or("the provider", |located| located.text);
        let place = provider.place;
        provider.rest(report);
        let text = format!(
            "a token of {} is not fetched for you: get one and hand it over as a secret",
            brief(who)
        );
        report.must(place, text);
        if let Some(env) = env {
            draft.secret(env, Some(format!("a token of {who}")), report);
            tokens.push(env);
        }
    }
    oauth.rest(report);
    tokens
}

fn environment(
    draft: &mut Draft<'_>,
    entry: &mut Object<'_>,
    reader: &Reader<'_>,
    report: &mut Report,
) {
    for mut variable in entry.maps("env", report) {
        let place = variable.place;
        let name = variable.text("name", report);
        let value = variable.text("value", report);
        variable.describing(&["example", "description"]);
        variable.rest(report);
        let Some(name) = name else {
            report.problem(place, "a variable has a `name`");
            continue;
        };
        let Some(value) = value else { continue };
        match reader.fill(value, Into::Variable, report).as_deref() {
            Some([text]) if text.contains('$') && !is_template(value.text) => report.left_out(
                value.place,
                format!(
                    "`{}` is not set: nothing is put in for variables in `{}`",
                    brief(name.text),
                    brief(value.text)
                ),
            ),
            // Values in a catalog are public; values of the person may be secrets.
            Some([text]) => draft.variable(name, text, !is_template(value.text), report),
            // Several values cannot be represented in one variable.
            Some([]) | None => {}
            Some(_) => report
                .problem(value.place, format!("`{}` would have several values", brief(name.text))),
        }
    }
}

fn egress(draft: &mut Draft<'_>, entry: &mut Object<'_>, place: Location, report: &mut Report) {
    let none = entry.flag("disableNetwork", report) == Some(true);
    let listed = entry.get("allowHosts").is_some();
    let hosts = entry.texts("allowHosts", report);
    for located in &hosts {
        match endpoint(located.text) {
            Some(host) if !none => draft.host(&host, located.place, report),
            Some(_) => report.left_out(located.place, "a host without a network"),
            None => report.left_out(
                located.place,
                format!(
                    "`{}` is not a host with a port: name what it needs in `egress`",
                    brief(located.text)
                ),
            ),
        }
    }
    draft.network = match (none, listed) {
        (true, _) => Some(false),
        (false, true) => Some(!hosts.is_empty()),
        (false, false) => None,
    };
    draft.network_place = place;
}

fn tools(draft: &mut Draft<'_>, entry: &mut Object<'_>, report: &mut Report) {
    for mut tool in entry.maps("tools", report) {
        let Some(name) = tool.text("name", report) else {
            report.problem(tool.place, "a tool has a `name`");
            continue;
        };
        let description = tool.text("description", report).map(|located| located.text.to_owned());
        // The server itself reports its arguments and claims.
        tool.describing(&[
            "arguments",
            "annotations",
            "parameters",
            "container",
            "requires",
            "enabled",
        ]);
        if let Some(policy) = tool.map("policy", report) {
            let mut policy = policy;
            if policy.flag("allowed", report) != Some(true) {
                draft.forbid(name.text);
            }
        }
        tool.rest(report);
        draft.tools.push(Tool { name: name.text.to_owned(), description });
    }
}

fn elsewhere(
    draft: &Draft<'_>,
    remote: Option<Object<'_>>,
    sse: Option<LocatedText<'_>>,
    tokens: &[LocatedText<'_>],
    place: Location,
    report: &mut Report,
) -> Option<Run> {
    let mut headers = BTreeMap::new();
    let (url, transport) = match (remote, sse) {
        (Some(mut remote), _) => {
            let url = remote.text("url", report);
            let kind = remote.text("transport_type", report);
            for (name, value) in remote.pairs("headers", report) {
                let secret = draft.header(&name.text, value, report);
                headers.insert(name.text.to_string(), secret);
            }
            remote.rest(report);
            let transport = match kind.map(|kind| kind.text) {
                None | Some("http") => Transport::Auto,
                Some("streamable-http" | "streamable_http" | "streamable") => {
                    Transport::StreamableHttp
                }
                Some("sse") => Transport::Sse,
                Some(other) => {
                    report.problem(
                        remote_place(kind, place),
                        format!("`{}` is not a transport", brief(other)),
                    );
                    return None;
                }
            };
            (url, transport)
        }
        (None, Some(url)) => (Some(url), Transport::Sse),
        (None, None) => (None, Transport::Auto),
    };
    let Some(url) = url else {
        report.problem(place, "the server is neither an `image` nor a `remote` with a `url`");
        return None;
    };
    if let (Some(token), false) = (tokens.first(), headers.contains_key("Authorization")) {
        let from = draft.source(&["Authorization", &format!("{}_AUTHORIZATION", token.text)]);
        let about = Some("`Bearer ` and the token".to_owned());
        headers.insert("Authorization".to_owned(), Secret { about, ..Secret::of(from) });
    }
    draft.url(url, report).map(|url| Run::Remote { url, transport, headers })
}

fn remote_place(kind: Option<LocatedText<'_>>, place: Location) -> Location {
    kind.map_or(place, |kind| kind.place)
}
