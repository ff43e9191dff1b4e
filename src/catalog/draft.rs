//! Converts a described server to a [`Server`]: the rules that all formats share.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_egress::{Destination, Host, Pattern};
use serde_json::Value;
use url::Url;

use crate::{
    interpolation::{Content, content},
    mount::clean,
    name::{as_variable, is_variable, ours, own_variables},
    object::LocatedText,
    options::Options,
    report::{Location, Report, brief, escaped},
    secret_heuristics::{argument_holds_secret, is_near, is_plain, url_holds_secret},
    server::{Mount, Run, Secret, Server, Tool},
    variables::loads_code,
};

/// Maximum bytes of a program, its arguments and deliveries: a person reads them to confirm.
const MOST_SHOWN: usize = 4 << 10;

/// Remedy for a path of this machine that the server cannot see.
pub(crate) const MOUNT_ELSEWHERE: &str = "mount its folder (`mounts = [\"FOLDER:/data\"]`, with `:rw` behind it to \
     write there), write the place inside here, and have `\"mounts\"` in the list of its `launch` policy";

/// System folders that the sandbox shows under their own names.
const SYSTEM: &[&str] =
    &["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/dev/null", "/nix/store"];

/// The author of a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Author {
    /// The person, or one of their clients.
    Person,
    /// The author of a catalog, a registry entry or a profile, who has no right to deliver anything
    /// of this machine to a server.
    Stranger,
}

pub(crate) struct Draft<'a> {
    options: &'a Options,
    pub name: String,
    pub original: String,
    pub place: Location,
    pub author: Author,
    pub title: Option<String>,
    pub description: Option<String>,
    env: BTreeMap<String, String>,
    secrets: BTreeMap<String, Secret>,
    mounts: Vec<Mount>,
    egress: BTreeMap<String, Location>,
    user: Option<String>,
    pub fetches: bool,
    pub stays: bool,
    pub tools: Vec<Tool>,
    forbidden: BTreeSet<String>,
    /// The tools that the file enables.
    pub only: Option<Vec<String>>,
    /// Whether the server should have a network. `None`: unspecified, elsewhere all of it.
    pub network: Option<bool>,
    pub network_place: Location,
}

impl<'a> Draft<'a> {
    /// Starts with the name of a server.
    pub fn of(
        original: &str,
        options: &'a Options,
        report: &mut Report,
        place: Location,
    ) -> Option<Self> {
        let name = match &options.name {
            Some(name) => name.clone(),
            None => {
                ours(original).map_err(|error| report.problem(place, error.to_string())).ok()?
            }
        };
        Some(Self {
            options,
            name,
            original: original.to_owned(),
            place,
            author: Author::Stranger,
            title: None,
            description: None,
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            mounts: Vec::new(),
            egress: BTreeMap::new(),
            user: None,
            fetches: false,
            stays: false,
            tools: Vec::new(),
            forbidden: BTreeSet::new(),
            only: None,
            network: None,
            network_place: place,
        })
    }

    /// Source of a secret: the reference that the operator names for this server (`--secret`) under
    /// the first matching name; otherwise this server's own variable of the proxy,
    /// `MCP_SERVER__NAME`, after the last name.
    ///
    /// Invariant: the author of the file chooses a name, and never a variable of the proxy.
    pub fn source(&self, names: &[&str]) -> String {
        let named = self.options.secrets.get(&self.original);
        if let Some(from) = named.and_then(|named| names.iter().find_map(|name| named.get(*name))) {
            return from.clone();
        }
        let own = names.last().map_or_else(String::new, |name| as_variable(name));
        format!("env:{}{own}", own_variables(&self.name))
    }

    /// Adds a secret that the server reads from that variable.
    pub fn secret(
        &mut self,
        variable: LocatedText<'_>,
        about: Option<String>,
        report: &mut Report,
    ) {
        let from = self.source(&[variable.text]);
        self.secret_from(variable, from, about, report);
    }

    /// Adds a secret with the given reference.
    pub fn secret_from(
        &mut self,
        variable: LocatedText<'_>,
        from: String,
        about: Option<String>,
        report: &mut Report,
    ) {
        if !is_variable(variable.text) {
            let text = format!("`{}` is not a name of a variable", brief(variable.text));
            report.problem(variable.place, text);
            return;
        }
        if loads_code(variable.text) {
            let text = format!("`{}` changes which code a program loads", variable.text);
            report.problem(variable.place, text);
            return;
        }
        self.env.remove(variable.text);
        self.secrets.insert(variable.text.to_owned(), Secret { about, ..Secret::of(from) });
    }

    /// Adds a variable with a value. `public`: the value is public in its source.
    pub fn variable(
        &mut self,
        name: LocatedText<'_>,
        value: &str,
        public: bool,
        report: &mut Report,
    ) {
        if !is_variable(name.text) {
            report
                .problem(name.place, format!("`{}` is not a name of a variable", brief(name.text)));
        } else if loads_code(name.text) {
            report.left_out(
                name.place,
                format!("`{}` changes which code a program loads, and is not set", name.text),
            );
        } else if value.contains('\0') {
            report.problem(name.place, format!("`{}` has a NUL in it", name.text));
        } else if self.secrets.contains_key(name.text) {
            report.left_out(name.place, format!("`{}` is a secret already", name.text));
        } else if public || is_plain(name.text, value) {
            self.env.insert(name.text.to_owned(), value.to_owned());
        } else {
            self.secret(name, None, report);
            if let Some(secret) = self.secrets.get(name.text) {
                let text = format!(
                    "the value of `{}` may be a secret and is not written: have it in `{}`, where the server gets it \
                     from",
                    name.text, secret.from
                );
                report.must(name.place, text);
            }
        }
    }

    /// Adds a variable of a client's file, with a value or with references in the client's syntax.
    /// `inputs` has the descriptions of VS Code's inputs, by id.
    pub fn variable_of_client(
        &mut self,
        name: LocatedText<'_>,
        value: LocatedText<'_>,
        inputs: &BTreeMap<String, String>,
        report: &mut Report,
    ) {
        let (from, about) = match content(value.text) {
            Content::Literal => return self.variable(name, value.text, false, report),
            Content::Variable(of) => (self.source(&[name.text, of]), None),
            Content::Input(id) => (self.source(&[name.text]), inputs.get(id).cloned()),
            Content::Built => (self.source(&[name.text]), None),
        };
        let suffix = match content(value.text) {
            Content::Built => format!(", as a whole (`{}` there)", brief(value.text)),
            _ => String::new(),
        };
        let text = format!("have the value of `{}` in `{from}`{suffix}", brief(name.text));
        report.must(value.place, text);
        self.secret_from(name, from, about, report);
    }

    /// Whether the server already gets that variable.
    pub fn has_variable(&self, name: &str) -> bool {
        self.env.contains_key(name) || self.secrets.contains_key(name)
    }

    /// A header's value, which is always a reference here: to the source that the operator names
    /// for the header, or to this server's own variable.
    pub fn header(&self, name: &str, value: LocatedText<'_>, report: &mut Report) -> Secret {
        let content = content(value.text);
        let from = match content {
            Content::Variable(of) => self.source(&[name, of]),
            Content::Literal | Content::Input(_) | Content::Built => self.source(&[name]),
        };
        // A value in braces is a form of the registry.
        let plain = content == Content::Literal
            && is_plain(name, value.text)
            && !value.text.contains(['$', '{']);
        let what = match content {
            Content::Variable(_) => String::new(),
            _ if plain => format!(": `{}`", brief(value.text)),
            _ => ", as a whole (such as `Bearer …`)".to_owned(),
        };
        report.must(value.place, format!("have the header `{}` in `{from}`{what}", brief(name)));
        Secret::of(from)
    }

    /// The URL of a remote server.
    pub fn url(&self, located: LocatedText<'_>, report: &mut Report) -> Option<String> {
        let problem = |report: &mut Report, text: &str| {
            report.problem(located.place, text);
            None
        };
        if located.text.contains(['{', '}', '$']) {
            return problem(report, "something is to be put into this URL: write it out");
        }
        let Ok(url) = Url::parse(located.text) else {
            return problem(report, "this is not a URL");
        };
        let Some(Ok(host)) = url.host_str().map(str::parse::<Host>) else {
            return problem(report, "a server's URL has a host");
        };
        if self.author == Author::Stranger && is_near(&Pattern::One(host.clone())) {
            return problem(
                report,
                "this URL leads to this machine or a network around it: if that is meant, write the server's \
                 `url` into the config yourself",
            );
        }
        let loopback = match &host {
            Host::Name(name) => name == "localhost",
            Host::Address(address) => address.is_loopback(),
        };
        match url.scheme() {
            "https" => {}
            "http" if loopback => {}
            "http" => {
                return problem(
                    report,
                    "plain HTTP would show every call on the network: use https",
                );
            }
            _ => return problem(report, "a server's URL begins with `https:`"),
        }
        if url_holds_secret(&url) {
            return problem(
                report,
                "this URL holds a secret, which is not written: send it in a header, if the server takes one",
            );
        }
        if url.fragment().is_some() {
            return problem(report, "a server's URL has no fragment");
        }
        // As parsed, unless it is written so: a host with non-ASCII letters is shown in punycode.
        let text = located.text.trim();
        let same = url.as_str().trim_end_matches('/') == text.trim_end_matches('/');
        Some(if same { text.to_owned() } else { url.into() })
    }

    /// Adds a folder of this machine. A stranger's request is accepted only if the person named
    /// that exact folder for this server.
    pub fn mount(&mut self, mount: Mount, place: Location, report: &mut Report) {
        if self.author == Author::Stranger && !self.is_named(&mount.source) {
            let requested = brief(&format!("{}:{}", mount.source, mount.target));
            report.left_out(
                place,
                format!(
                    "it asks for `{requested}`, a folder of this machine that you did not name: if that is meant, name \
                     it with `--set`, or in `mounts`"
                ),
            );
            return;
        }
        if self.mounts.iter().any(|other| other.target == mount.target) {
            let text = format!("two mounts have the target `{}`", brief(&mount.target));
            report.problem(place, text);
            return;
        }
        let how = if mount.writable { "writes to" } else { "reads" };
        report.deviates(place, format!("it {how} `{}` of this machine", escaped(&mount.source)));
        self.mounts.push(mount);
    }

    /// Whether the person's settings for the server name a folder.
    fn is_named(&self, folder: &str) -> bool {
        let names = [&self.original, &self.name];
        names.iter().filter_map(|name| self.options.values.get(*name)).any(|own| has(own, folder))
    }

    /// Sets the numeric user of the server: `UID` or `UID:GID`.
    pub fn user(&mut self, user: &str, place: Location, report: &mut Report) {
        let (uid, gid) = user.split_once(':').unwrap_or((user, user));
        match (uid.parse::<u32>(), gid.parse::<u32>()) {
            (Ok(0), _) | (_, Ok(0)) => {
                report.left_out(place, "it is meant to run as root, and runs as nobody here");
            }
            (Ok(uid), Ok(gid)) => {
                report.deviates(place, format!("it runs as user {uid}, group {gid}"));
                self.user = Some(format!("{uid}:{gid}"));
            }
            _ => report.left_out(
                place,
                format!("the user `{}` has no number, and it runs as nobody here", brief(user)),
            ),
        }
    }

    /// Adds a host that the server needs, as an entry of `egress`.
    pub fn host(&mut self, entry: &str, place: Location, report: &mut Report) {
        let Ok(to) = entry.parse::<Destination>() else {
            report.problem(place, format!("`{}` is not a host", brief(entry)));
            return;
        };
        if is_near(&to.host) {
            report.left_out(
                place,
                format!(
                    "it asks for `{to}`, which is this machine or a network around it: if that is meant, write it in \
                     `egress`"
                ),
            );
            return;
        }
        self.egress.entry(to.to_string()).or_insert(place);
    }

    /// Disables a tool for all principals.
    pub fn forbid(&mut self, tool: &str) {
        self.forbidden.insert(tool.to_owned());
    }

    /// Arguments are visible in process lists and in the config.
    pub fn arguments_hold_no_secret(
        &self,
        arguments: &[String],
        place: Location,
        report: &mut Report,
    ) {
        let mut before = None;
        for (at, argument) in arguments.iter().enumerate() {
            if argument.chars().any(char::is_control) {
                report.problem(place, format!("argument {} has a control character in it", at + 1));
            }
            if argument_holds_secret(before, argument) {
                let text = format!(
                    "argument {} looks like a secret, and arguments can be read by every process of the \
                     machine: hand it over in a variable, if the server takes one",
                    at + 1
                );
                report.problem(place, text);
            }
            before = Some(argument);
        }
    }

    /// Reports paths of this machine in variables that the server does not see.
    fn unseen_places(&self, report: &mut Report) {
        for (name, value) in self.env.iter().filter(|(_, value)| !value.contains("://")) {
            let is_path = |path: &&str| path.starts_with('/') || path.starts_with("~/");
            for path in value.split(':').filter(is_path) {
                if !self.sees(path) {
                    let path = brief(path);
                    report.must(
                        self.place,
                        format!("it does not see `{path}` (`{name}`): {MOUNT_ELSEWHERE}"),
                    );
                }
            }
        }
    }

    /// Whether the server sees that path under its own name, in a mount or in a system folder of
    /// the sandbox.
    fn sees(&self, path: &str) -> bool {
        let path = clean(path);
        let is_under = |top: &str| {
            path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        SYSTEM.iter().any(|top| is_under(top))
            || self.mounts.iter().any(|mount| is_under(&mount.target))
    }

    /// The server, unless it has problems.
    pub fn finish(mut self, run: Run, report: &mut Report) -> Option<Server> {
        let place = self.place;
        match &run {
            Run::Remote { headers, .. } => {
                // Secrets in headers are delivered by the headers.
                self.secrets
                    .retain(|_, secret| !headers.values().any(|header| header.from == secret.from));
                if !self.env.is_empty() || !self.secrets.is_empty() {
                    // The server gets none of them, so the person needs none of them.
                    let gone: Vec<String> =
                        self.secrets.values().map(|secret| format!("`{}`", secret.from)).collect();
                    report.notes.retain(|note| !gone.iter().any(|gone| note.text.contains(gone)));
                    report.left_out(place, "a server elsewhere has no variables of ours");
                    self.env.clear();
                    self.secrets.clear();
                }
                if !self.mounts.is_empty() {
                    report.left_out(place, "a server elsewhere has no folders of ours");
                    self.mounts.clear();
                }
                self.egress.clear();
                self.user = None;
            }
            Run::Image { .. } if self.network.is_none() => report.advice(
                self.network_place,
                "nothing says which hosts it needs, and here it reaches none: name them in `egress`",
            ),
            Run::Image { .. } | Run::Command { .. } => {}
        }
        // Paths for an image are its own; paths for a program are those of this machine.
        if matches!(run, Run::Command { .. }) || self.fetches {
            self.unseen_places(report);
        }
        for (host, place) in &self.egress {
            report.deviates(*place, format!("it reaches `{host}`"));
        }
        let runs = match &run {
            Run::Image { arguments, .. } => arguments.iter().map(String::len).sum(),
            Run::Command { program, arguments } => {
                program.len() + arguments.iter().map(String::len).sum::<usize>()
            }
            Run::Remote { url, headers, .. } => {
                url.len() + headers.keys().map(String::len).sum::<usize>()
            }
        };
        let env = self.env.iter().map(|(name, value)| name.len() + value.len());
        let names = self.secrets.keys().map(String::len);
        if env.chain(names).sum::<usize>() + runs > MOST_SHOWN {
            let text = format!(
                "its program, arguments and settings have more than {} KiB, too much to read before it is confirmed: if that is \
                 meant, write the server into the config yourself",
                MOST_SHOWN >> 10
            );
            report.problem(place, text);
        }
        let all_but = (!self.forbidden.is_empty()).then(|| {
            let tools = self.tools.iter().map(|tool| tool.name.clone());
            tools.filter(|name| !self.forbidden.contains(name)).collect()
        });
        let only = self.options.only.get(&self.original).cloned().or(self.only).or(all_but);
        let server = Server {
            name: self.name,
            original: self.original,
            title: self.title,
            description: self.description,
            run,
            env: self.env,
            secrets: self.secrets,
            mounts: self.mounts,
            egress: self.egress.into_keys().collect(),
            user: self.user,
            fetches: self.fetches,
            stays: self.stays,
            tools: self.tools,
            only,
            notes: std::mem::take(&mut report.notes),
        };
        report.problems.is_empty().then_some(server)
    }
}

/// Whether a setting is or contains a folder.
fn has(setting: &Value, folder: &str) -> bool {
    match setting {
        Value::String(text) => text.starts_with('/') && clean(text) == folder,
        Value::Array(items) => items.iter().any(|item| has(item, folder)),
        Value::Object(map) => map.values().any(|value| has(value, folder)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
