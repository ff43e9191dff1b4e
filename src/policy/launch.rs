//! What a start of a server takes, and what policies say of each part of it: for the proxy, which then
//! makes it, and for commands that tell of it or prepare it.

use cedar_policy::EntityId;

use super::{Action, DeliveredAs, Engine, Holder, Outcome, Program, Resource, Subject};
use portcullis_protocol::names::ServerName;

/// A start of a server.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    /// Which server.
    pub server: &'a ServerName,
    /// What is to run.
    pub program: &'a Program,
    /// The URL at which it is, where it runs elsewhere.
    pub url: Option<&'a str>,
    /// What it is to be handed.
    pub secrets: Vec<Handing<'a>>,
}

/// A secret that a server is to be handed.
#[derive(Debug, Clone, Copy)]
pub struct Handing<'a> {
    /// The name under which the server gets it.
    pub name: &'a str,
    /// The kind of its source.
    pub source: &'a str,
    /// How it gets it.
    pub handed: DeliveredAs,
    /// The client whose own value it is.
    pub client: Option<&'a str>,
}

/// One thing that a start takes, and what policies say of it.
#[derive(Debug, Clone)]
pub struct Part {
    /// What is done.
    pub action: Action,
    /// With what: the program, `HOST:PORT` (of a server elsewhere in the program's place, too: its URL may
    /// hold a secret), or the secret's name.
    pub target: String,
    /// What was decided.
    pub outcome: Outcome,
}

/// What is asked of a part, and how it is shown.
type Asked<'a> = (Action, Resource<'a>, String);

impl Start<'_> {
    /// Shows the parts to a function, with the host in a resource of its own.
    fn parts<T>(&self, each: impl FnOnce(Vec<Asked<'_>>) -> T) -> T {
        let Start { server, program, url, secrets } = self;
        let way = url.map(destination);
        let place = way.as_ref().map(|(host, port)| format!("{host}:{port}"));
        let shown = place.unwrap_or_else(|| program.name.clone());
        let mut asked = vec![(Action::Launch, Resource::Program(program), shown)];
        if let Some((host, port)) = &way {
            let resource = Resource::Host { name: host, port: *port };
            asked.push((Action::Egress, resource, format!("{host}:{port}")));
        }
        for &Handing { name, source, handed, client } in secrets {
            let holder = Holder::Server(server);
            let resource = Resource::Secret { holder, name, source, handed, client };
            asked.push((Action::DeliverSecret, resource, name.to_owned()));
        }
        each(asked)
    }
}

impl Engine {
    /// Decides all that a start takes. It is permitted where each part of it [is](Outcome::permits_alone).
    pub fn decide_start(&self, start: &Start<'_>) -> Vec<Part> {
        start.parts(|asked| {
            let decided = asked.into_iter().map(|(action, resource, target)| {
                let outcome = self.decide_own(Subject::Server(start.server), action, resource);
                Part { action, target, outcome }
            });
            decided.collect()
        })
    }

    /// Policies that are missing for a start: one for each part of it that no permit is about,
    /// whatever its conditions. With them, the start is permitted where no other policy forbids it.
    pub fn missing_permits(&self, start: &Start<'_>) -> Vec<String> {
        let server = start.server;
        start.parts(|asked| {
            let missing = asked.into_iter().filter_map(|(action, resource, _)| {
                if self.has_permit(Subject::Server(server), action, resource) {
                    return None;
                }
                let one = |kind: &str, id: String| {
                    let id = EntityId::new(id);
                    format!("resource == Portcullis::{kind}::\"{}\"\n);", id.escaped())
                };
                let resource = match resource {
                    // The URL itself may hold a secret.
                    Resource::Program(_) if start.url.is_some() => {
                        "resource\n)\nwhen { resource.runtime == \"remote\" };".to_owned()
                    }
                    Resource::Program(program) => one("Program", program.name.clone()),
                    Resource::Host { name, port } => one("Host", format!("{name}:{port}")),
                    Resource::Secret { name, .. } => one("Secret", format!("{server}/{name}")),
                    _ => return None,
                };
                Some(format!(
                    "permit (\n  principal == Portcullis::Server::\"{server}\",\n  action == \
                     Portcullis::Action::\"{}\",\n  {resource}",
                    action.as_str(),
                ))
            });
            // A secret that clients have values of their own of is asked about once for each.
            let mut missing: Vec<_> = missing.collect();
            missing.dedup();
            missing
        })
    }
}

/// The host that a URL leads to, without the brackets of an IPv6 address, and the port. What leads
/// nowhere that is known is asked of as it is written, and no policy knows it.
fn destination(url: &str) -> (String, u16) {
    let parsed = reqwest::Url::parse(url).ok();
    let known =
        parsed.as_ref().and_then(|url| Some((url.host_str()?, url.port_or_known_default()?)));
    match known {
        Some((host, port)) => (host.trim_matches(['[', ']']).to_owned(), port),
        None => (url.to_owned(), 0),
    }
}
