//! Requests as a person writes them: an action or a method, and a target.

use super::request::{Action, Resource, Subject};
use portcullis_protocol::claims::Claims;
use portcullis_protocol::{exchange::Method, identity::Principal, names::ServerName};

/// The action of a client's message.
pub fn client_action(method: &str, notification: bool) -> Action {
    match method {
        Method::INITIALIZE
        | Method::DISCOVER
        | Method::TOOLS_LIST
        | Method::PROMPTS_LIST
        | Method::RESOURCES_LIST
        | Method::TEMPLATES_LIST
        | Method::TASKS_LIST
        | Method::LISTEN
        | Method::SET_LEVEL => Action::Connect,
        Method::TOOLS_CALL => Action::CallTool,
        Method::PROMPTS_GET => Action::GetPrompt,
        Method::RESOURCES_READ => Action::ReadResource,
        Method::SUBSCRIBE | Method::UNSUBSCRIBE => Action::SubscribeResource,
        method if Method::TASK.contains(&method) => Action::AccessTask,
        Method::COMPLETE => Action::Complete,
        _ if notification => Action::NotifyServer,
        _ => Action::OtherMethod,
    }
}

/// Whether a message is protocol housekeeping, which is not subject to policies.
pub fn is_housekeeping(method: &str, notification: bool, from_client: bool) -> bool {
    match method {
        Method::PING => true,
        Method::CANCELLED | Method::PROGRESS => notification,
        Method::INITIALIZED => notification && from_client,
        _ => false,
    }
}

/// The action of a server's message to a client.
pub fn server_action(method: &str, notification: bool) -> Action {
    match method {
        Method::SAMPLE => Action::Sample,
        Method::ELICIT => Action::Elicit,
        Method::ROOTS_LIST => Action::ListRoots,
        _ if notification => Action::NotifyClient,
        _ => Action::OtherServerMethod,
    }
}

/// The action of a word that is an action or a method, and the value of `context.method` for it.
pub fn worded_action(word: &str) -> (Action, &str) {
    if let Some(action) = Action::ALL.iter().copied().find(|action| action.as_str() == word) {
        return (action, usual_method(action));
    }
    let notification = word.starts_with("notifications/");
    let action = match server_action(word, notification) {
        action @ (Action::Sample | Action::Elicit | Action::ListRoots) => action,
        _ => client_action(word, notification),
    };
    (action, word)
}

/// The method of an action, the first one if it has several. Empty if it has none.
fn usual_method(action: Action) -> &'static str {
    match action {
        Action::Connect => Method::INITIALIZE,
        Action::CallTool => Method::TOOLS_CALL,
        Action::AccessTask => Method::TASK[0],
        Action::GetPrompt => Method::PROMPTS_GET,
        Action::Complete => Method::COMPLETE,
        Action::ReadResource => Method::RESOURCES_READ,
        Action::SubscribeResource => Method::SUBSCRIBE,
        Action::SeeTemplate => Method::TEMPLATES_LIST,
        Action::Sample => Method::SAMPLE,
        Action::Elicit => Method::ELICIT,
        Action::ListRoots => Method::ROOTS_LIST,
        Action::NotifyServer
        | Action::OtherMethod
        | Action::NotifyClient
        | Action::OtherServerMethod
        | Action::Launch
        | Action::DeliverSecret
        | Action::Egress
        | Action::Grant => "",
    }
}

/// Target of an action, as a person writes it: `SERVER/TOOL`, `SERVER/URI` or `SERVER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Proxy,
    Server(ServerName),
    Tool(ServerName, String),
    Prompt(ServerName, String),
    Resource(ServerName, String),
    Template(ServerName, String),
    /// The server that sends a message to the client.
    Requester(ServerName),
}

/// Why a text is not a valid target of the action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTarget {
    #[error("`{}` needs a target of the form {what}", action.as_str())]
    Missing { action: Action, what: &'static str },
    #[error("`{}` is an action of the proxy; a client cannot be its principal", .0.as_str())]
    Own(Action),
    #[error("the server's name: {0}")]
    Server(#[from] portcullis_protocol::names::IllegalName),
}

impl Target {
    /// Parses the target of this action.
    ///
    /// # Errors
    /// If the action needs another kind of target, or the name of the server is invalid.
    pub fn parse(action: Action, text: Option<&str>) -> Result<Self, NoTarget> {
        let missing = |what| NoTarget::Missing { action, what };
        let on_server = |what| {
            let (server, rest) = text.and_then(|text| text.split_once('/')).ok_or(missing(what))?;
            Ok::<_, NoTarget>((server.parse::<ServerName>()?, rest.to_owned()))
        };
        Ok(match action {
            Action::Connect | Action::NotifyServer | Action::OtherMethod => match text {
                Some(name) => Self::Server(name.parse()?),
                None => Self::Proxy,
            },
            Action::CallTool | Action::AccessTask => {
                let (server, name) = on_server("SERVER/TOOL")?;
                Self::Tool(server, name)
            }
            Action::GetPrompt => {
                let (server, name) = on_server("SERVER/PROMPT")?;
                Self::Prompt(server, name)
            }
            Action::ReadResource | Action::SubscribeResource => {
                let (server, uri) = on_server("SERVER/URI")?;
                Self::Resource(server, uri)
            }
            Action::SeeTemplate => {
                let (server, uri) = on_server("SERVER/TEMPLATE")?;
                Self::Template(server, uri)
            }
            Action::Complete => match on_server("SERVER/PROMPT or SERVER/TEMPLATE")? {
                (server, uri) if uri.contains("://") => Self::Template(server, uri),
                (server, name) => Self::Prompt(server, name),
            },
            Action::Sample
            | Action::Elicit
            | Action::ListRoots
            | Action::NotifyClient
            | Action::OtherServerMethod => {
                Self::Requester(text.ok_or(missing("SERVER, the server that asks"))?.parse()?)
            }
            Action::Launch | Action::DeliverSecret | Action::Egress | Action::Grant => {
                return Err(NoTarget::Own(action));
            }
        })
    }

    /// The tool, if the target is one.
    pub fn tool(&self) -> Option<(&ServerName, &str)> {
        match self {
            Self::Tool(server, name) => Some((server, name)),
            _ => None,
        }
    }

    /// The server in the target.
    pub fn server(&self) -> Option<&ServerName> {
        match self {
            Self::Proxy => None,
            Self::Server(server)
            | Self::Tool(server, _)
            | Self::Prompt(server, _)
            | Self::Resource(server, _)
            | Self::Template(server, _)
            | Self::Requester(server) => Some(server),
        }
    }

    /// Subject and resource of a request in which this client takes part.
    pub fn sides<'a>(
        &'a self,
        principal: &'a Principal,
        claims: Claims,
    ) -> (Subject<'a>, Resource<'a>) {
        let client = Subject::Client(principal);
        match self {
            Self::Proxy => (client, Resource::Proxy),
            Self::Server(server) => (client, Resource::Server(server)),
            Self::Tool(server, name) => (client, Resource::Tool { server, name, claims }),
            Self::Prompt(server, name) => (client, Resource::Prompt { server, name }),
            Self::Resource(server, uri) => (client, Resource::Resource { server, uri }),
            Self::Template(server, uri) => (client, Resource::Template { server, uri }),
            Self::Requester(server) => (Subject::Server(server), Resource::Client(principal)),
        }
    }
}
