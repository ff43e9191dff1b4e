//! What a principal may use, evaluated by the policies before a server is involved.

use crate::router;
use portcullis_interceptors::policy::{self, Listed};
use portcullis_protocol::{exchange::Definition, names::ServerName};
use portcullis_upstream::ListKind;

/// Visibility of servers and their items for one principal.
pub(crate) struct PrincipalView<'a>(pub(crate) policy::PolicyVisibility<'a>);

impl router::Visibility for PrincipalView<'_> {
    fn tool(&self, server: &ServerName, name: &str) -> bool {
        self.0.may_be_callable(server, name)
    }

    fn prompt(&self, server: &ServerName, name: &str) -> bool {
        self.0.visible(Listed::Prompt { server, name })
    }

    fn completes(&self, server: &ServerName, name: &str) -> bool {
        self.0.completes(server, name)
    }

    fn resource(&self, server: &ServerName, uri: &str) -> bool {
        self.0.visible(Listed::Resource { server, uri })
    }

    fn server(&self, server: &ServerName) -> bool {
        self.0.lists(server)
    }

    fn item(&self, offer: ListKind, definition: &Definition) -> bool {
        let (server, name) = (&definition.server, definition.name.as_str());
        let entry = match offer {
            ListKind::Tools => Listed::Tool(definition),
            ListKind::Prompts => Listed::Prompt { server, name },
            ListKind::Resources => Listed::Resource { server, uri: name },
            ListKind::Templates => Listed::Template { server, uri: name },
        };
        self.0.visible(entry)
    }
}
