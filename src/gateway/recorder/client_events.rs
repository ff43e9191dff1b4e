//! Events of changes of clients.

use portcullis_audit::record::{By, ClientAdded, ClientRemoved, Event};
use portcullis_protocol::identity::Change;

/// The event of a change of clients.
pub(crate) fn changed(change: Change, by: By) -> Event {
    match change {
        Change::Added { client, key, groups } => ClientAdded {
            client: client.to_string(),
            key_id: key,
            groups: groups.iter().map(ToString::to_string).collect(),
            by,
        }
        .into(),
        Change::Removed { client, key } => {
            ClientRemoved { client: client.to_string(), key_id: key, by }.into()
        }
    }
}
