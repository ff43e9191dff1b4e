//! Process at the other end of a connection.

use std::{fs, io};

use tokio::net::UnixStream;

/// Client of the socket as reported by the kernel; nothing comes from the client itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    user: u32,
    /// Process id and start time in the kernel's ticks: another process may get the id of one that
    /// ended. `None` if the kernel reports no process, as for one in a separate container. All such
    /// processes of a user count as one.
    process: Option<(i32, u64)>,
}

impl Peer {
    /// Peer of a connection.
    ///
    /// # Errors
    /// If the kernel does not report it.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let process = credentials.pid().and_then(|pid| Some((pid, began(pid)?)));
        Ok(Self { user: credentials.uid(), process })
    }
}

/// Start time of a process.
fn began(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Follows the name, which is in brackets and may contain anything.
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Peer of a test.
    pub(crate) fn peer(pid: i32) -> Peer {
        Peer { user: 1, process: Some((pid, 1)) }
    }

    #[tokio::test]
    async fn peer_is_identified_by_process_and_start_time() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let (here, there) = (Peer::of(&one).expect("a peer"), Peer::of(&other).expect("a peer"));
        assert_eq!(here, there);
        let pid = i32::try_from(std::process::id()).expect("a number");
        let Some((id, began)) = here.process else { panic!("{here:?}") };
        assert_eq!(id, pid);
        // A later process with the same id, one of another user, and an unknown one.
        for other in [
            Peer { process: Some((pid, began + 1)), ..here },
            Peer { user: here.user + 1, ..here },
            Peer { process: None, ..here },
        ] {
            assert_ne!(here, other);
        }
        // A process that does not exist, and one that started earlier.
        assert_eq!(super::began(i32::MAX), None);
        assert!(super::began(1).is_some_and(|first| first < began));
    }
}
