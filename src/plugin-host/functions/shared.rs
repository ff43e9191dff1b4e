//! State and grants of a plugin.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{host_services::HostServices, http::Client, state::Values};
use crate::secret_redactor::SecretRedactor;
use portcullis_vault::Secret;

/// State and grants that all instances of a plugin share.
pub struct Shared {
    /// Name of the plugin's entry in the config.
    pub entry: Arc<str>,
    pub log: bool,
    pub metrics: bool,
    pub state: Option<Values>,
    pub http: Option<Client>,
    /// Whether requests are sent, or only recorded.
    pub sends: bool,
    pub secrets: BTreeMap<String, Secret>,
    pub veil: SecretRedactor,
    pub services: Arc<dyn HostServices>,
    /// Names of its counters.
    pub counters: Mutex<BTreeSet<Box<str>>>,
}

impl Shared {
    /// Without grants, for `describe`.
    pub fn bare(entry: &str, services: Arc<dyn HostServices>) -> Self {
        Self {
            entry: entry.into(),
            log: false,
            metrics: false,
            state: None,
            http: None,
            sends: true,
            secrets: BTreeMap::new(),
            veil: SecretRedactor::default(),
            services,
            counters: Mutex::default(),
        }
    }
}
