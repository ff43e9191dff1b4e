//! One server in a client's file.

use std::collections::BTreeMap;

use super::{arguments::written_out, docker};
use crate::{
    draft::{Author, Draft, MOUNT_ELSEWHERE},
    mount,
    name::is_variable,
    node::Node,
    object::{LocatedText, Object},
    options::Options,
    package_run, packages,
    report::{Location, Report, brief, quoted},
    server::{Run, Secret, Server, Transport},
};

/// Context for reading an entry.
pub(super) struct Context<'a> {
    pub options: &'a Options,
    /// Descriptions of VS Code's inputs, by id.
    pub inputs: &'a BTreeMap<String, String>,
}

pub(super) fn read(
    name: &str,
    node: &Node,
    context: &Context<'_>,
    report: &mut Report,
) -> Option<Server> {
    let mut entry = Object::of(node, "a server", report)?;
    let place = entry.place;
    let mut draft = Draft::of(name, context.options, report, place)?;
    if !context.options.foreign {
        draft.author = Author::Person;
    }
    draft.description = entry.text("description", report).map(|located| located.text.to_owned());
    // The client's own settings for a server; only the transport matters here.
    entry.describing(&[
        "name",
        "timeout",
        "trust",
        "alwaysAllow",
        "autoApprove",
        "gallery",
        "version",
        "source",
        "settings",
        "dev",
        "display_name",
        "bundled",
        "available_tools",
        "startup_timeout_sec",
        "tool_timeout_sec",
        "startup_timeout_ms",
        "watchPaths",
        "connectionTimeout",
        "scope",
        "required",
        "metadata",
        "initTimeout",
    ]);
    for off in [("disabled", true), ("enabled", false), ("isActive", false)] {
        if entry.flag(off.0, report) == Some(off.1) {
            report.problem(place, format!("it is switched off here (`{}`)", off.0));
        }
    }
    for key in ["includeTools", "enabled_tools"] {
        // An empty list enables none.
        if entry.get(key).is_some() {
            draft.only.get_or_insert_default();
        }
        for tool in entry.texts(key, report) {
            draft.only.get_or_insert_default().push(tool.text.to_owned());
        }
    }
    for key in ["disabledTools", "excludeTools", "disabled_tools"] {
        let off: Vec<String> =
            entry.texts(key, report).iter().map(|located| quoted(located.text)).collect();
        if !off.is_empty() {
            let off = off.join(", ");
            report.must(
                place,
                format!(
                    "`{key}` switches tools off, which is not carried over: permit no call of {off}"
                ),
            );
        }
    }
    let (program, arguments) = command(&mut entry, report);
    environment(&mut draft, &mut entry, context, report);
    for key in ["cwd", "workingDirectory"] {
        if let Some(folder) = entry.text(key, report) {
            report.left_out(
                folder.place,
                "it starts in a folder of its own, and not in the one named here",
            );
        }
    }
    for key in ["envFile", "env_file"] {
        if let Some(file) = entry.text(key, report) {
            report.must(
                file.place,
                "variables of a file are not read: name those that the server needs in `secrets`",
            );
        }
    }
    let kind = entry.text("type", report).or(entry.text("transport", report));
    let urls = ["url", "serverUrl", "httpUrl", "uri"].map(|key| (key, entry.text(key, report)));
    let url = urls.iter().find_map(|(key, url)| Some((*key, (*url)?)));
    let mut headers = BTreeMap::new();
    let mut written = entry.pairs("headers", report);
    written.extend(entry.pairs("http_headers", report));
    // The form of Continue.
    if let Some(mut options) = entry.map("requestOptions", report) {
        written.extend(options.pairs("headers", report));
        options.rest(report);
    }
    for (name, value) in written {
        headers.insert(name.text.to_string(), draft.header(&name.text, value, report));
    }
    for (name, variable) in entry.pairs("env_http_headers", report) {
        if !is_variable(variable.text) {
            let text = format!("`{}` is not a name of a variable", brief(variable.text));
            report.problem(variable.place, text);
        }
        let from = draft.source(&[&name.text, variable.text]);
        report.must(variable.place, format!("have the header `{}` in `{from}`", brief(&name.text)));
        headers.insert(name.text.to_string(), Secret::of(from));
    }
    if let Some(variable) = entry.text("bearer_token_env_var", report) {
        let from = draft.source(&["Authorization"]);
        report.must(
            variable.place,
            format!("have the header `Authorization` in `{from}`: `Bearer ` and the token"),
        );
        headers.insert("Authorization".to_owned(), Secret::of(from));
    }
    if let Some(oauth) = entry.get("oauth").or(entry.get("auth")).or(entry.get("headersHelper")) {
        report.must(oauth.place, "a token is not fetched for you: send one in a header");
    }
    entry.rest(report);

    let run = match (program, url) {
        (Some(program), None) => local(&mut draft, program, arguments, place, context, report),
        (None, Some((key, url))) => {
            let transport = transport(key, kind, report)?;
            draft.url(url, report).map(|url| Run::Remote { url, transport, headers })
        }
        (Some(_), Some((_, url))) => {
            report.problem(url.place, "it has both a command and a URL");
            None
        }
        (None, None) => {
            report.problem(place, "it has neither a command nor a URL");
            None
        }
    }?;
    draft.finish(run, report)
}

/// The command, in one of the forms: `command` and `args`; a list; a table with `path`; `cmd`.
fn command<'a>(
    entry: &mut Object<'a>,
    report: &mut Report,
) -> (Option<LocatedText<'a>>, Vec<LocatedText<'a>>) {
    let mut all = Vec::new();
    for key in ["command", "cmd"] {
        let Some(node) = entry.get(key) else { continue };
        if let Some(items) = node.items() {
            let texts = items
                .iter()
                .filter_map(|item| Some(LocatedText { place: item.place, text: item.scalar()? }));
            all.extend(texts);
        } else if let Some(mut inner) =
            node.entries().and_then(|_| Object::of(node, "a command", report))
        {
            all.extend(inner.text("path", report));
            all.extend(inner.texts("args", report));
            if let Some(env) = inner.get("env") {
                report.problem(env.place, "variables stand beside the command, in `env`");
            }
            inner.rest(report);
        } else if let Some(text) = node.scalar() {
            all.push(LocatedText { place: node.place, text });
        }
    }
    all.extend(entry.texts("args", report));
    let mut all = all.into_iter();
    let program = all.next();
    if let Some(program) = program
        && program.text.contains(char::is_whitespace)
        && !program.text.starts_with('/')
    {
        report.problem(
            program.place,
            "the program and its arguments stand in one text: write them apart",
        );
    }
    (program, all.collect())
}

fn environment(
    draft: &mut Draft<'_>,
    entry: &mut Object<'_>,
    context: &Context<'_>,
    report: &mut Report,
) {
    for key in ["env", "environment", "envs"] {
        for (name, value) in entry.pairs(key, report) {
            let name = LocatedText { place: name.place, text: &name.text };
            draft.variable_of_client(name, value, context.inputs, report);
        }
    }
    for name in entry.texts("env_keys", report).into_iter().chain(entry.texts("env_vars", report)) {
        draft.secret(name, None, report);
    }
}

fn transport(key: &str, kind: Option<LocatedText<'_>>, report: &mut Report) -> Option<Transport> {
    let Some(kind) = kind else {
        return Some(if key == "httpUrl" { Transport::StreamableHttp } else { Transport::Auto });
    };
    match kind.text {
        "http" | "remote" => Some(Transport::Auto),
        "streamable-http" | "streamableHttp" | "streamable_http" => Some(Transport::StreamableHttp),
        "sse" => Some(Transport::Sse),
        other => {
            report.problem(kind.place, format!("`{}` is not a transport to a URL", brief(other)));
            None
        }
    }
}

fn local(
    draft: &mut Draft<'_>,
    program: LocatedText<'_>,
    arguments: Vec<LocatedText<'_>>,
    place: Location,
    context: &Context<'_>,
    report: &mut Report,
) -> Option<Run> {
    let mut arguments = arguments;
    let mut program = program;
    // Windows needs a shell to find scripts.
    if matches!(program.text, "cmd" | "cmd.exe")
        && arguments.len() > 1
        && arguments[0].text.eq_ignore_ascii_case("/c")
    {
        program = arguments[1];
        arguments.drain(..2);
    }
    let base = program.text.rsplit(['/', '\\']).next().unwrap_or(program.text);
    let base = base.trim_end_matches(".cmd").trim_end_matches(".exe");
    if matches!(
        base,
        "sh" | "bash"
            | "zsh"
            | "cmd"
            | "powershell"
            | "pwsh"
            | "wsl"
            | "osascript"
            | "sudo"
            | "env"
    ) {
        report.problem(
            program.place,
            format!("`{base}` runs what stands behind it, whatever that is: name the program and its arguments"),
        );
        return None;
    }
    if base == "npx" && arguments.iter().any(|located| is_bridge(located.text)) {
        return bridged(draft, &arguments, report);
    }
    if matches!(base, "docker" | "podman" | "nerdctl") {
        return docker::run(draft, &arguments, report);
    }
    written_out(&arguments, report);
    let plain: Vec<String> = arguments.iter().map(|located| located.text.to_owned()).collect();
    if let Some(fetcher) = packages::of(base, &plain) {
        draft.arguments_hold_no_secret(&plain, place, report);
        let own = packages::own_arguments(fetcher, &plain).len();
        folders(draft, &arguments[arguments.len() - own..], report);
        return package_run::run(draft, fetcher, plain, context.options.packages, place, report);
    }
    draft.arguments_hold_no_secret(&plain, place, report);
    let files = arguments.iter().copied().filter(|word| is_hidden_file(word.text));
    folders(draft, &files.collect::<Vec<_>>(), report);
    report.fact(
        place,
        "in the sandbox the program sees its own files and what is in `mounts`, and reaches no host: add what it needs",
    );
    Some(Run::Command { program: program.text.to_owned(), arguments: plain })
}

/// Whether an argument names a file of this machine that a program in the sandbox does not see.
/// Other arguments may begin with a slash, too, such as the path of a URL.
fn is_hidden_file(argument: &str) -> bool {
    let visible = ["/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/"];
    argument.starts_with('/')
        && !visible.iter().any(|top| argument.starts_with(top))
        && std::path::Path::new(argument).exists()
}

/// Mounts the paths in arguments of a person's own file: the server sees them under the same name,
/// read-only.
fn folders(draft: &mut Draft<'_>, arguments: &[LocatedText<'_>], report: &mut Report) {
    for located in arguments {
        let is_path = |text: &str| text.starts_with('/') || text.starts_with("~/");
        let behind = located.text.split_once('=').map(|(_, value)| value);
        let Some(path) =
            [Some(located.text), behind].into_iter().flatten().find(|text| is_path(text))
        else {
            continue;
        };
        let place = located.place;
        let instead = MOUNT_ELSEWHERE;
        match mount::of(path, path, false) {
            // Paths below /tmp are the server's own.
            Ok(inside) if inside.target == "/tmp" || inside.target.starts_with("/tmp/") => {
                report.must(place, format!("it does not see `{}`: {instead}", brief(path)));
            }
            Ok(inside) => {
                draft.mount(inside, place, report);
                report.advice(
                    place,
                    "to write there, it needs `:rw` behind that mount, and to be let: it is another user, \
                     unless `hardening.user = \"UID:GID\"` says yours",
                );
            }
            Err(why) => {
                let path = brief(path);
                report.must(place, format!("it does not see `{path}` ({why}): {instead}"));
            }
        }
    }
}

fn is_bridge(argument: &str) -> bool {
    argument == "mcp-remote" || argument.starts_with("mcp-remote@")
}

/// `mcp-remote URL --header NAME:VALUE` is a bridge to a remote server, to which the proxy connects
/// directly.
fn bridged(
    draft: &mut Draft<'_>,
    arguments: &[LocatedText<'_>],
    report: &mut Report,
) -> Option<Run> {
    let mut rest = arguments.iter().skip_while(|located| !is_bridge(located.text)).skip(1);
    let mut url = None;
    let mut headers = BTreeMap::new();
    let mut transport = Transport::Auto;
    while let Some(located) = rest.next() {
        match located.text {
            "--header" => {
                let Some(value) = rest.next() else { break };
                let (name, text) = value.text.split_once(':').unwrap_or((value.text, ""));
                let text = LocatedText { place: value.place, text: text.trim() };
                headers.insert(name.trim().to_owned(), draft.header(name.trim(), text, report));
            }
            "--transport" => {
                transport = match rest.next().map(|located| located.text) {
                    Some("sse-only") => Transport::Sse,
                    Some("http-only") => Transport::StreamableHttp,
                    _ => Transport::Auto,
                }
            }
            option if option.starts_with('-') => {
                report.left_out(
                    located.place,
                    format!("`{}` of mcp-remote has no effect", brief(option)),
                );
            }
            _ if url.is_none() => url = Some(*located),
            _ => report.left_out(
                located.place,
                format!("`{}` of mcp-remote has no effect", brief(located.text)),
            ),
        }
    }
    let Some(url) = url else {
        report.problem(draft.place, "`mcp-remote` has no URL");
        return None;
    };
    // Secrets of headers may be in variables.
    draft.url(url, report).map(|url| Run::Remote { url, transport, headers })
}
