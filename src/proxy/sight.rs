//! What a principal could use, asked of the policies before any server is.

use crate::{
    exchange::Definition,
    identity::Principal,
    interceptors::policy::{Listed, PolicyGate},
    names::ServerName,
    router,
    upstream::Offer,
};

/// One principal's sight.
pub(super) struct Sight<'a> {
    pub gate: &'a PolicyGate,
    pub principal: &'a Principal,
}

impl router::Sight for Sight<'_> {
    fn tool(&self, server: &ServerName, name: &str) -> bool {
        self.gate.conceivable(self.principal, server, name)
    }

    fn prompt(&self, server: &ServerName, name: &str) -> bool {
        self.gate.visible(self.principal, Listed::Prompt { server, name })
    }

    fn resource(&self, server: &ServerName, uri: &str) -> bool {
        self.gate.visible(self.principal, Listed::Resource { server, uri })
    }

    fn server(&self, server: &ServerName) -> bool {
        self.gate.lists(self.principal, server)
    }

    fn item(&self, offer: Offer, definition: &Definition) -> bool {
        let (server, name) = (&definition.server, definition.name.as_str());
        let entry = match offer {
            Offer::Tools => Listed::Tool(definition),
            Offer::Prompts => Listed::Prompt { server, name },
            Offer::Resources => Listed::Resource { server, uri: name },
            Offer::Templates => Listed::Template { server, uri: name },
        };
        self.gate.visible(self.principal, entry)
    }
}
