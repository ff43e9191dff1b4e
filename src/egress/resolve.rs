//! Name resolution.

use std::{io, net::IpAddr, sync::Arc};

use async_trait::async_trait;
use tokio::sync::Semaphore;

/// Limit of one program's concurrent lookups. Each occupies a thread of the proxy until DNS
/// answers, and a name of a `*.` entry may have servers that are slow on purpose.
const MAX_CONCURRENT_LOOKUPS: usize = 8;

/// Resolves names to addresses.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// All known addresses of a name.
    ///
    /// # Errors
    /// If the name is unknown.
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// Resolver of this machine, for one program.
#[derive(Debug)]
pub struct System {
    permits: Arc<Semaphore>,
}

impl Default for System {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_CONCURRENT_LOOKUPS)) }
    }
}

#[async_trait]
impl Resolver for System {
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        // The final dot excludes this machine's search domains: a request for `a.example` must not
        // reach `a.example.internal.corp`.
        let absolute = if name.contains('.') { format!("{name}.") } else { name.to_owned() };
        let permit = self.permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        // The lookup and its permit continue after the caller has stopped waiting.
        let lookup = tokio::spawn(async move {
            let found = tokio::net::lookup_host((absolute.as_str(), 0)).await;
            drop(permit);
            found.map(|found| found.map(|found| found.ip()).collect())
        });
        lookup.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_resolved_by_this_machine() {
        let system = System::default();
        let found = system.addresses("localhost").await.unwrap();
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
