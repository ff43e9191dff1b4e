//! Actions of the proxy itself: launch of a server, secret delivery, egress, and grants of a
//! plugin.

use super::file::{Case, CasePrincipal, Runtime};
use portcullis_policy::{Action, DeliveredAs, Resource, Subject};
use portcullis_protocol::names::ServerName;

/// A server or a plugin.
pub(super) enum Holder {
    Server(ServerName),
    Plugin(String),
}

impl Holder {
    fn subject(&self) -> Subject<'_> {
        match self {
            Self::Server(server) => Subject::Server(server),
            Self::Plugin(plugin) => Subject::Plugin(plugin),
        }
    }

    fn holder(&self) -> portcullis_policy::Holder<'_> {
        match self {
            Self::Server(server) => portcullis_policy::Holder::Server(server),
            Self::Plugin(plugin) => portcullis_policy::Holder::Plugin(plugin),
        }
    }
}

/// An action of the proxy itself.
pub(super) enum ProxyAction {
    Launch {
        server: ServerName,
        program: portcullis_policy::Program,
    },
    DeliverSecret {
        holder: Holder,
        name: String,
        source: String,
        delivery: DeliveredAs,
        client: Option<String>,
    },
    Reach {
        holder: Holder,
        host: String,
        port: u16,
    },
    Grant {
        plugin: String,
        function: String,
    },
}

impl ProxyAction {
    /// The actions of a case, each with its target as text. `None` if the case has none; an error
    /// if its principal cannot be one of them.
    pub(super) fn of(
        case: &Case,
        who: &CasePrincipal,
    ) -> Option<Result<Vec<(String, Self)>, String>> {
        let server = || match who {
            CasePrincipal::Server(server) => Ok(server.clone()),
            _ => Err("this is done for a server: write `as: server:NAME`".to_owned()),
        };
        let holder = || match who {
            CasePrincipal::Server(server) => Ok(Holder::Server(server.clone())),
            CasePrincipal::Plugin(plugin) => Ok(Holder::Plugin(plugin.clone())),
            _ => Err("this is done for a server or a plugin: write `as: server:NAME` or \
                      `as: plugin:NAME`"
                .to_owned()),
        };
        if let Some(program) = &case.launch {
            let program = &program.value;
            let runtime = match program.runtime {
                Runtime::Container => "container",
                Runtime::Sandbox => "sandbox",
                Runtime::Remote => "remote",
            };
            let program = portcullis_policy::Program {
                runtime,
                name: program.name.clone(),
                digest: program.digest.clone(),
                deviations: program.deviations.clone(),
                signers: program.signers.clone(),
                attested: program.attested.clone(),
            };
            let shown = format!("{runtime} {}", program.name);
            return Some(server().map(|server| vec![(shown, Self::Launch { server, program })]));
        }
        if let Some(secret) = &case.deliver {
            let (name, source) = (secret.value.name.clone(), secret.value.source.clone());
            let client = secret.value.client.clone();
            let shown = format!("{name} from {source}");
            let delivery =
                |holder: &Holder| match (secret.value.delivery, secret.value.header, holder) {
                    (None | Some(DeliveredAs::Header), true, _) => Ok(DeliveredAs::Header),
                    (Some(_), true, _) => {
                        Err("`header: true` and `delivery` differ: keep one".to_owned())
                    }
                    (Some(delivery), false, _) => Ok(delivery),
                    (None, false, Holder::Server(_)) => Ok(DeliveredAs::Env),
                    (None, false, Holder::Plugin(_)) => Ok(DeliveredAs::Plugin),
                };
            return Some(holder().and_then(|holder| {
                let delivery = delivery(&holder)?;
                Ok(vec![(shown, Self::DeliverSecret { holder, name, source, delivery, client })])
            }));
        }
        if let Some(hosts) = &case.egress {
            let one = |text: &String| {
                let problem = || format!("`{}` is not HOST:PORT", text.escape_debug());
                let (host, port) = text.rsplit_once(':').ok_or_else(problem)?;
                let port = port.parse().map_err(|_| problem())?;
                let (holder, host) = (holder()?, host.to_owned());
                Ok((text.clone(), Self::Reach { holder, host, port }))
            };
            return Some(hosts.value.0.iter().map(one).collect());
        }
        let functions = case.grant.as_ref()?;
        let one = |function: &String| match who {
            CasePrincipal::Plugin(plugin) => {
                let own = Self::Grant { plugin: plugin.clone(), function: function.clone() };
                Ok((function.clone(), own))
            }
            _ => Err("this is given to a plugin: write `as: plugin:NAME`".to_owned()),
        };
        Some(functions.value.0.iter().map(one).collect())
    }

    pub(super) fn action(&self) -> Action {
        match self {
            Self::Launch { .. } => Action::Launch,
            Self::DeliverSecret { .. } => Action::DeliverSecret,
            Self::Reach { .. } => Action::Egress,
            Self::Grant { .. } => Action::Grant,
        }
    }

    pub(super) fn sides(&self) -> (Subject<'_>, Resource<'_>) {
        match self {
            Self::Launch { server, program } => {
                (Subject::Server(server), Resource::Program(program))
            }
            Self::DeliverSecret { holder, name, source, delivery, client } => (
                holder.subject(),
                Resource::Secret {
                    holder: holder.holder(),
                    name,
                    source,
                    delivery: *delivery,
                    client: client.as_deref(),
                },
            ),
            Self::Reach { holder, host, port } => {
                (holder.subject(), Resource::Host { name: host, port: *port })
            }
            Self::Grant { plugin, function } => {
                (Subject::Plugin(plugin), Resource::Grant(function))
            }
        }
    }
}
