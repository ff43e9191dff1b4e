//! From names to addresses.

use std::{io, net::IpAddr};

use async_trait::async_trait;

/// Finds the addresses of names.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// All that are known.
    ///
    /// # Errors
    /// Where nothing is known of it.
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// This machine's own way.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

#[async_trait]
impl Resolver for System {
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        // The dot keeps this machine's search domains away: who is asked for `a.example` must not
        // answer as `a.example.internal.corp`.
        let absolute = if name.contains('.') { format!("{name}.") } else { name.to_owned() };
        let found = tokio::net::lookup_host((absolute.as_str(), 0)).await?;
        Ok(found.map(|found| found.ip()).collect())
    }
}
