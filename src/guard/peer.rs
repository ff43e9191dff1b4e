//! Who is at the other end of a connection.

use std::{fs, io};

use tokio::net::UnixStream;

/// A client of the socket, as the kernel tells of it: nothing that it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    user: u32,
    /// Its id, and when it began, in the kernel's ticks: another process may get the id of one that has
    /// ended. Nothing where the kernel tells of no process, as of one in a container of its own: then
    /// all of the user's are one.
    process: Option<(i32, u64)>,
}

impl Peer {
    /// That of a connection.
    ///
    /// # Errors
    /// Where the kernel does not say.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let process = credentials.pid().and_then(|pid| Some((pid, began(pid)?)));
        Ok(Self { user: credentials.uid(), process })
    }
}

/// When a process began.
fn began(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which is in brackets and may hold anything.
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Somebody.
    pub(crate) fn peer(pid: i32) -> Peer {
        Peer { user: 1, process: Some((pid, 1)) }
    }

    #[tokio::test]
    async fn a_peer_is_a_process_of_a_time() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let (here, there) = (Peer::of(&one).expect("a peer"), Peer::of(&other).expect("a peer"));
        assert_eq!(here, there);
        let pid = i32::try_from(std::process::id()).expect("a number");
        let Some((id, began)) = here.process else { panic!("{here:?}") };
        assert_eq!(id, pid);
        // Another one that has its id later, one of another user, and one of whom nothing is known.
        for other in [
            Peer { process: Some((pid, began + 1)), ..here },
            Peer { user: here.user + 1, ..here },
            Peer { process: None, ..here },
        ] {
            assert_ne!(here, other);
        }
        // A process that is not there, and one that began before this one.
        assert_eq!(super::began(i32::MAX), None);
        assert!(super::began(1).is_some_and(|first| first < began));
    }
}
