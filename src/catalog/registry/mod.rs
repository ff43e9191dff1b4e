//! `server.json` of the MCP registry: packages and remotes of one server.

mod input;

use std::collections::BTreeMap;

use serde_json::Value;

use input::InputValue;

use crate::{
    ParsedFile,
    docker::one,
    draft::Draft,
    node::Node,
    object::{LocatedText, Object},
    options::Options,
    package_run, packages,
    report::{Problem, Report, brief},
    server::{Image, Run, Server, Transport},
    values::Values,
};

/// Whether it is a `server.json`, or a response of the registry with several.
pub(crate) fn is_file(node: &Node) -> bool {
    is_server(node) || !wrapped(node).is_empty()
}

fn is_server(node: &Node) -> bool {
    let named = node.get("name").and_then(Node::text).is_some_and(|name| name.contains('/'));
    named && ["packages", "remotes", "version", "$schema"].iter().any(|key| node.get(key).is_some())
}

/// The servers of a response, or of an artifact that lists them.
fn wrapped(node: &Node) -> Vec<&Node> {
    let alone = node.get("server").filter(|server| is_server(server));
    let lists =
        ["servers", "registry"].map(|key| node.get(key).and_then(Node::items).unwrap_or_default());
    let listed = lists.into_iter().flatten().filter_map(|item| {
        item.get("server")
            .filter(|server| is_server(server))
            .or(Some(item).filter(|item| is_server(item)))
    });
    alone.into_iter().chain(listed).collect()
}

/// Reads the servers.
pub(crate) fn file(node: &Node, options: &Options) -> Result<ParsedFile, Problem> {
    let servers = if is_server(node) { vec![node] } else { wrapped(node) };
    if servers.len() > 10_000 {
        return Err(Problem::at(node.place, "more than 10000 servers in one file"));
    }
    let servers = servers
        .into_iter()
        .map(|node| {
            let name = node.get("name").and_then(Node::text).unwrap_or("");
            one(name, node, |report| read(name, node, options, report))
        })
        .collect();
    Ok(ParsedFile {
        format: "MCP registry",
        title: None,
        servers,
        notes: Vec::new(),
        values: Values::new(),
    })
}

fn read(name: &str, node: &Node, options: &Options, report: &mut Report) -> Option<Server> {
    let mut entry = Object::of(node, "a server", report)?;
    let place = entry.place;
    let mut draft = Draft::of(name, options, report, place)?;
    draft.title = entry.text("title", report).map(|located| located.text.to_owned());
    draft.description = entry.text("description", report).map(|located| located.text.to_owned());
    entry.describing(&[
        "$schema",
        "_meta",
        "name",
        "version",
        "icons",
        "repository",
        "websiteUrl",
        "website_url",
        "id",
        "version_detail",
        "created_at",
        "updated_at",
    ]);
    if let Some(status) = entry.text("status", report)
        && status.text != "active"
    {
        report.fact(status.place, format!("the registry calls it `{}`", brief(status.text)));
    }
    let packages = entry.list("packages", report);
    let remotes = entry.list("remotes", report);
    entry.rest(report);

    let settings = settings(options, name, &draft.name);
    let kinds: Vec<&str> = packages.iter().map(kind_of).collect();
    // First an image, which has its own files; then a remote; then a package, which has none.
    let image = kinds.iter().position(|kind| *kind == "oci");
    let supported = kinds.iter().position(|kind| matches!(*kind, "npm" | "pypi" | "nuget"));
    let chosen = match (image, remotes.first(), supported.or((!packages.is_empty()).then_some(0))) {
        (Some(at), ..) => Distribution::Package(&packages[at]),
        (None, Some(_), _) => {
            let http = remotes.iter().find(|remote| {
                remote
                    .get("type")
                    .and_then(Node::text)
                    .is_some_and(|kind| kind.starts_with("streamable"))
            });
            Distribution::Remote(http.unwrap_or(&remotes[0]))
        }
        (None, None, Some(at)) => Distribution::Package(&packages[at]),
        (None, None, None) => {
            report.problem(place, "it has neither packages nor remotes");
            return None;
        }
    };
    let alternatives = packages.len() + remotes.len();
    if alternatives > 1 {
        report.left_out(
            place,
            format!("it can be had in {alternatives} ways: this is {}", chosen.name()),
        );
    }
    let mut reader = Reader { settings, named: BTreeMap::new() };
    let run = match chosen {
        Distribution::Package(node) => reader.package(&mut draft, node, options, report),
        Distribution::Remote(node) => reader.remote(&mut draft, node, report),
    }?;
    draft.finish(run, report)
}

enum Distribution<'a> {
    Package(&'a Node),
    Remote(&'a Node),
}

impl Distribution<'_> {
    fn name(&self) -> String {
        match self {
            Self::Package(node) => format!("the package of {}", brief(kind_of(node))),
            Self::Remote(_) => "the server elsewhere".to_owned(),
        }
    }
}

fn kind_of(package: &Node) -> &str {
    let kind =
        ["registryType", "registry_type", "registry_name"].iter().find_map(|key| package.get(key));
    match kind.and_then(Node::text).unwrap_or("") {
        "docker" | "docker-hub" => "oci",
        kind => kind,
    }
}

/// The person's settings, under the server's original or config name.
fn settings(options: &Options, original: &str, name: &str) -> Value {
    let own = options.values.get(original).or_else(|| options.values.get(name));
    own.cloned().unwrap_or(Value::Null)
}

struct Reader {
    settings: Value,
    /// Values of inputs, for a URL that refers to them.
    named: BTreeMap<String, String>,
}

impl Reader {
    fn package(
        &mut self,
        draft: &mut Draft<'_>,
        node: &Node,
        options: &Options,
        report: &mut Report,
    ) -> Option<Run> {
        let mut package = Object::of(node, "a package", report)?;
        let place = package.place;
        let kind = kind_of(node);
        package.describing(&["registryType", "registry_type", "registry_name"]);
        let identifier = either(&mut package, ["identifier", "name"], report);
        let version = package.text("version", report);
        if let Some(base) = either(&mut package, ["registryBaseUrl", "registry_base_url"], report) {
            let usual = ["registry.npmjs.org", "pypi.org", "docker.io", "api.nuget.org", "ghcr.io"];
            if !usual.iter().any(|host| base.text.contains(host)) {
                report.fact(base.place, format!("the package comes from `{}`", brief(base.text)));
            }
        }
        if let Some(hash) = either(&mut package, ["fileSha256", "file_sha256"], report) {
            report.fact(hash.place, "what is fetched is not held against `fileSha256`");
        }
        let hint = either(&mut package, ["runtimeHint", "runtime_hint"], report);
        let transport = package.map("transport", report);
        let variables =
            nodes(&mut package, ["environmentVariables", "environment_variables"], report);
        let runtime = nodes(&mut package, ["runtimeArguments", "runtime_arguments"], report);
        let own = nodes(&mut package, ["packageArguments", "package_arguments"], report);
        package.rest(report);
        if let Some(mut transport) = transport {
            let kind = transport.text("type", report);
            if let Some(kind) = kind
                && kind.text != "stdio"
            {
                report.problem(
                    kind.place,
                    "the package listens on a port of its own: run it yourself, and add its URL as a server",
                );
                return None;
            }
        }
        let Some(identifier) = identifier else {
            report.problem(place, "a package has an `identifier`");
            return None;
        };
        for node in variables {
            self.variable(draft, node, report);
        }
        let own = self.arguments(own, report);
        draft.arguments_hold_no_secret(&own, place, report);
        match kind {
            "oci" => self.image(draft, identifier, version, runtime, own, report),
            "npm" | "pypi" | "nuget" => {
                let program = match (kind, hint.map(|hint| hint.text)) {
                    ("npm", Some(hint @ ("npx" | "bunx")))
                    | ("pypi", Some(hint @ ("uvx" | "pipx"))) => hint,
                    ("npm", _) => "npx",
                    ("pypi", _) => "uvx",
                    _ => "dnx",
                };
                let runtime = self.arguments(runtime, report);
                self.fetched(draft, program, identifier, version, (runtime, own), options, report)
            }
            "mcpb" => {
                report.problem(
                    place,
                    "bundles (`mcpb`) cannot be run here: take what is in it as a `command`",
                );
                None
            }
            other => {
                report.problem(
                    place,
                    format!("packages of the kind `{}` are not known here", brief(other)),
                );
                None
            }
        }
    }

    fn image(
        &mut self,
        draft: &mut Draft<'_>,
        identifier: LocatedText<'_>,
        version: Option<LocatedText<'_>>,
        runtime: &[Node],
        own: Vec<String>,
        report: &mut Report,
    ) -> Option<Run> {
        let mut image: Image = identifier
            .text
            .parse()
            .map_err(|error: crate::image::NoImage| {
                report.problem(identifier.place, error.to_string())
            })
            .ok()?;
        let tagged = image.name.rsplit('/').next().is_some_and(|last| last.contains(':'));
        if let Some(version) = version
            && image.digest.is_none()
            && !tagged
        {
            image = format!("{}:{}", image.name, version.text)
                .parse()
                .map_err(|error: crate::image::NoImage| {
                    report.problem(version.place, error.to_string())
                })
                .ok()?;
        }
        let runtime = self.arguments(runtime, report);
        // They are options of `docker run`, with the same restrictions.
        let place = identifier.place;
        let words: Vec<LocatedText<'_>> = ["run"]
            .into_iter()
            .chain(runtime.iter().map(String::as_str).filter(|word| *word != "run"))
            .chain(["--", "image"])
            .map(|text| LocatedText { place, text })
            .collect();
        crate::clients::docker_run(draft, &words, report);
        Some(Run::Image { image, arguments: own })
    }

    #[allow(clippy::too_many_arguments, reason = "each is a part of one package")]
    fn fetched(
        &mut self,
        draft: &mut Draft<'_>,
        program: &str,
        identifier: LocatedText<'_>,
        version: Option<LocatedText<'_>>,
        (runtime, own): (Vec<String>, Vec<String>),
        options: &Options,
        report: &mut Report,
    ) -> Option<Run> {
        let legal = |text: &str| {
            !text.starts_with('-')
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"@/._-+[]".contains(&b))
        };
        let version_is_legal = version.is_none_or(|version| legal(version.text));
        if !legal(identifier.text) || identifier.text.is_empty() || !version_is_legal {
            report.problem(
                identifier.place,
                format!("`{}` is not a name of a package", brief(identifier.text)),
            );
            return None;
        }
        let package = match version {
            Some(version) => format!("{}@{}", identifier.text, version.text),
            None => identifier.text.to_owned(),
        };
        let mut arguments = runtime;
        arguments.push(package);
        arguments.extend(own);
        let place = identifier.place;
        let Some(fetcher) = packages::of(program, &arguments) else {
            report.problem(place, format!("`{}` does not fetch packages", brief(program)));
            return None;
        };
        package_run::run(draft, fetcher, arguments, options.packages, place, report)
    }

    fn remote(&mut self, draft: &mut Draft<'_>, node: &Node, report: &mut Report) -> Option<Run> {
        let mut remote = Object::of(node, "a remote", report)?;
        let place = remote.place;
        let kind = either(&mut remote, ["type", "transport_type"], report);
        let url = remote.text("url", report);
        let variables = remote.get("variables");
        let mut headers = BTreeMap::new();
        for mut header in remote.maps("headers", report) {
            let at = header.place;
            let Some(name) = header.text("name", report) else {
                report.problem(at, "a header has a `name`");
                continue;
            };
            let value =
                header.text("value", report).unwrap_or(LocatedText { place: at, text: "…" });
            let secret = draft.header(name.text, value, report);
            headers.insert(name.text.to_owned(), secret);
        }
        remote.rest(report);
        let transport = match kind.map(|kind| kind.text) {
            Some("streamable-http" | "streamable") => Transport::StreamableHttp,
            Some("sse") => Transport::Sse,
            None => Transport::Auto,
            Some(other) => {
                report.problem(place, format!("`{}` is not a transport", brief(other)));
                return None;
            }
        };
        let Some(url) = url else {
            report.problem(place, "a remote has a `url`");
            return None;
        };
        for (key, node) in variables.and_then(Node::entries).unwrap_or_default() {
            let input_value = self.input(node, &key.text, report);
            if let InputValue::Values(values) = input_value
                && let [value] = values.as_slice()
            {
                // A value is one part of a URL, and never more.
                let part: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
                self.named.insert(key.text.to_string(), part);
            }
        }
        let filled = self.braces(url.text);
        draft.url(LocatedText { place: url.place, text: &filled }, report).map(|url| Run::Remote {
            url,
            transport,
            headers,
        })
    }
}

fn either<'a>(
    object: &mut Object<'a>,
    names: [&'static str; 2],
    report: &mut Report,
) -> Option<LocatedText<'a>> {
    let [one, other] = names.map(|name| object.text(name, report));
    one.or(other)
}

fn nodes<'a>(object: &mut Object<'a>, names: [&'static str; 2], report: &mut Report) -> &'a [Node] {
    let [one, other] = names.map(|name| object.list(name, report));
    if one.is_empty() { other } else { one }
}
