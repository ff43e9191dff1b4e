//! The parts of a launch and the policy decision on each, for the proxy, which then starts the
//! server, and for commands that show or prepare a launch.

use cedar_policy::EntityId;

use super::{Action, DeliveredAs, Engine, Holder, Outcome, Program, Resource, Subject};
use portcullis_protocol::{names::ServerName, refusal::Rule};

/// A launch of a server.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    /// Name of the server.
    pub server: &'a ServerName,
    /// The program to run.
    pub program: &'a Program,
    /// The URL of a remote server.
    pub url: Option<&'a str>,
    /// The secrets to deliver.
    pub secrets: Vec<LaunchSecret<'a>>,
}

/// A secret to deliver to a server.
#[derive(Debug, Clone, Copy)]
pub struct LaunchSecret<'a> {
    /// The name under which the server gets the secret.
    pub name: &'a str,
    /// The kind of its source.
    pub source: &'a str,
    /// How the secret is delivered.
    pub delivery: DeliveredAs,
    /// The client that the value belongs to, if each client has its own.
    pub client: Option<&'a str>,
}

/// One part of a launch, with the decision on it.
#[derive(Debug, Clone)]
pub struct Part {
    /// Action of the part.
    pub action: Action,
    /// The resource: the program, `HOST:PORT`, or the name of the secret. For a remote server,
    /// `HOST:PORT` replaces the program too, because its URL may contain a secret.
    pub target: String,
    /// The decision.
    pub outcome: Outcome,
}

/// The request for a part, and its target as text.
type LaunchQuery<'a> = (Action, Resource<'a>, String);

impl Start<'_> {
    /// Passes the parts to a function. The resource of a host borrows from this function.
    fn parts<T>(&self, each: impl FnOnce(Vec<LaunchQuery<'_>>) -> T) -> T {
        let Start { server, program, url, secrets } = self;
        let host_port = url.map(destination);
        let shown_host = host_port.as_ref().map(|(host, port)| format!("{host}:{port}"));
        let shown = shown_host.unwrap_or_else(|| program.name.clone());
        let mut requests = vec![(Action::Launch, Resource::Program(program), shown)];
        if let Some((host, port)) = &host_port {
            let resource = Resource::Host { name: host, port: *port };
            requests.push((Action::Egress, resource, format!("{host}:{port}")));
        }
        for &LaunchSecret { name, source, delivery, client } in secrets {
            let holder = Holder::Server(server);
            let resource = Resource::Secret { holder, name, source, delivery, client };
            requests.push((Action::DeliverSecret, resource, name.to_owned()));
        }
        each(requests)
    }
}

impl Engine {
    /// Decides all parts of a launch. It is permitted if each part [is](Outcome::permits_alone).
    pub fn decide_start(&self, start: &Start<'_>) -> Vec<Part> {
        self.decide_start_at(start, jiff::Timestamp::now())
    }

    /// As [`Engine::decide_start`], at another time.
    pub fn decide_start_at(&self, start: &Start<'_>, at: jiff::Timestamp) -> Vec<Part> {
        start.parts(|requests| {
            let decided = requests.into_iter().map(|(action, resource, target)| {
                let subject = Subject::Server(start.server);
                let outcome = self.decide_own_at(subject, action, resource, at);
                Part { action, target, outcome }
            });
            decided.collect()
        })
    }

    /// Policies that a launch lacks: one for each part without a permit whose scope matches it,
    /// whatever its conditions are. With them, the launch is permitted unless a policy forbids it.
    pub fn missing_permits(&self, start: &Start<'_>) -> Vec<String> {
        let server = start.server;
        start.parts(|requests| {
            let missing = requests.into_iter().filter_map(|(action, resource, _)| {
                if self.has_permit(Subject::Server(server), action, resource) {
                    return None;
                }
                let one = |kind: &str, id: String| {
                    let id = EntityId::new(id);
                    format!("resource == Portcullis::{kind}::\"{}\"\n);", id.escaped())
                };
                let resource = match resource {
                    // The URL itself may contain a secret.
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
            // A secret with a value for each client is one part for each client.
            let mut missing: Vec<_> = missing.collect();
            missing.dedup();
            missing
        })
    }
}

/// Deviations from the hardened profile that keep a program from being started.
#[derive(Debug, Clone)]
pub struct RefusedDeviations {
    /// Keys of the config.
    pub keys: Vec<String>,
    /// The policies that would permit the start without them.
    pub permits: Vec<Rule>,
}

impl RefusedDeviations {
    /// The keys, each between these quotes.
    pub fn quoted(&self, quote: char) -> String {
        let all: Vec<_> = self.keys.iter().map(|key| format!("{quote}{key}{quote}")).collect();
        all.join(", ")
    }

    /// The policies that would permit the start without them, with their places.
    pub fn places(&self) -> String {
        let all = self.permits.iter().map(|rule| match (&rule.file, rule.line) {
            (Some(file), Some(line)) => format!("`{}` ({}:{line})", rule.id, file.display()),
            _ => format!("`{}`", rule.id),
        });
        all.collect::<Vec<_>>().join(", ")
    }
}

impl Engine {
    /// The deviations of a program without which policies would permit its launch. `None` if they
    /// permit it, or refuse it for another reason; the latter can depend on facts that are known only
    /// at the start, such as a digest.
    pub fn refused_deviations(
        &self,
        server: &ServerName,
        program: &Program,
    ) -> Option<RefusedDeviations> {
        let now = jiff::Timestamp::now();
        let decide = |deviations: &[String]| {
            ["container", "sandbox"].map(|runtime| {
                let deviations = deviations.to_vec();
                let program = Program { runtime, deviations, ..program.clone() };
                let resource = Resource::Program(&program);
                self.decide_own_at(Subject::Server(server), Action::Launch, resource, now)
            })
        };
        let permits = |outcomes: &[Outcome]| outcomes.iter().any(Outcome::permits_alone);
        let with_all = decide(&program.deviations);
        // Rules of a refusal forbid it.
        if permits(&with_all) || with_all.iter().any(|outcome| !outcome.rules.is_empty()) {
            return None;
        }
        let mut without = decide(&[]).into_iter().filter(Outcome::permits_alone);
        let permitting = without.next()?.rules;
        let refused = |key: &&String| !permits(&decide(std::slice::from_ref(*key)));
        let keys: Vec<_> = program.deviations.iter().filter(refused).cloned().collect();
        // Each of them alone is permitted, and all together are not.
        let keys = if keys.is_empty() { program.deviations.clone() } else { keys };
        Some(RefusedDeviations { keys, permits: permitting })
    }
}

/// Host and port of a URL, without the brackets of an IPv6 address. A URL without a known host is
/// used as it is written, which no policy matches.
fn destination(url: &str) -> (String, u16) {
    let parsed = reqwest::Url::parse(url).ok();
    let known =
        parsed.as_ref().and_then(|url| Some((url.host_str()?, url.port_or_known_default()?)));
    match known {
        Some((host, port)) => (host.trim_matches(['[', ']']).to_owned(), port),
        None => (url.to_owned(), 0),
    }
}
