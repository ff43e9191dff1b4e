//! From names to addresses.

use std::{io, net::IpAddr, sync::Arc};

use async_trait::async_trait;
use tokio::sync::Semaphore;

/// Questions of one program under way at once. Each takes a thread of the whole proxy for as long as
/// the DNS likes, and a name of a `*.` entry may be one whose servers like to take long.
const AT_ONCE: usize = 8;

/// Finds the addresses of names.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// All that are known.
    ///
    /// # Errors
    /// Where nothing is known of it.
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// This machine's own way, for one program.
#[derive(Debug)]
pub struct System {
    permits: Arc<Semaphore>,
}

impl Default for System {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

#[async_trait]
impl Resolver for System {
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        // The dot keeps this machine's search domains away: who is asked for `a.example` must not
        // answer as `a.example.internal.corp`.
        let absolute = if name.contains('.') { format!("{name}.") } else { name.to_owned() };
        let permit = self.permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        // It goes on where its asker has given up, and so does the permit.
        let asked = tokio::spawn(async move {
            let found = tokio::net::lookup_host((absolute.as_str(), 0)).await;
            drop(permit);
            found.map(|found| found.map(|found| found.ip()).collect())
        });
        asked.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_looked_up_on_this_machine() {
        let system = System::default();
        let found = system.addresses("localhost").await.unwrap();
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
