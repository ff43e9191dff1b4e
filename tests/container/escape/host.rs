//! What there is to be reached outside.

use std::{
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{PermissionsExt, symlink},
            net::{SocketAddr as UnixAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use uuid::Uuid;

/// Listeners, files and a process of the host's. All of it goes when this does.
pub struct Host {
    /// The folder that servers see as `/data`.
    pub folder: TempDir,
    /// The engine's socket. Sandboxes have no control that is given it.
    #[allow(dead_code, reason = "the suite of sandboxes has this file, too")]
    pub socket: PathBuf,
    file: PathBuf,
    memory: PathBuf,
    name: String,
    gateway: String,
    canary: String,
    tcp: TcpListener,
    udp: SocketAddr,
    _abstract: UnixListener,
    process: Child,
}

impl Host {
    /// With a folder in `place`, in which programs can be set-user-ID. `gateway` is this machine's
    /// address on the engine's default bridge.
    pub fn new(probe: &Path, place: &Path, gateway: String) -> Self {
        let name = format!("escape-{}", Uuid::now_v7().simple());
        let folder = tempfile::tempdir_in(place).unwrap();
        open_to_all(folder.path(), 0o755);
        fs::copy(probe, folder.path().join("setuid")).unwrap();
        open_to_all(&folder.path().join("setuid"), 0o4755);
        let address = std::env::var("DOCKER_HOST").unwrap_or("unix:///var/run/docker.sock".into());
        let socket = PathBuf::from(address.strip_prefix("unix://").expect("a unix socket"));
        symlink(&socket, folder.path().join("engine.sock")).unwrap();

        let file = std::env::temp_dir().join(&name);
        let memory = Path::new("/dev/shm").join(&name);
        for place in [&file, &memory] {
            fs::write(place, "of the host").unwrap();
            open_to_all(place, 0o644);
        }
        let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
        let answering = UdpSocket::bind("0.0.0.0:0").unwrap();
        let udp = answering.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut question = [0; 512];
            // Its own last word to itself ends it.
            while let Ok((length, asker)) = answering.recv_from(&mut question) {
                if &question[..length] == b"end" {
                    break;
                }
                let _ = answering.send_to(&question[..length], asker);
            }
        });
        let canary = ["seen", "in", &name].join("-");
        let process = Command::new("sleep")
            .arg("600")
            .env("CANARY", &canary)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let address = UnixAddr::from_abstract_name(&name).unwrap();
        Self {
            folder,
            socket,
            file,
            memory,
            canary,
            tcp,
            udp,
            _abstract: UnixListener::bind_addr(&address).unwrap(),
            process,
            name,
            gateway,
        }
    }

    /// What the probe has to know to try.
    pub fn told(&self) -> Vec<String> {
        let (tcp, udp) = (self.tcp.local_addr().unwrap().port(), self.udp.port());
        let Self { gateway, .. } = self;
        vec![
            "socket=/data/engine.sock".into(),
            "setuid=/data/setuid".into(),
            format!("file={}", self.file.display()),
            format!("shm={}", self.name),
            format!("abstract={}", self.name),
            format!("canary={}", self.canary),
            format!("process={}", self.process.id()),
            format!("loopback={tcp}"),
            format!("gateway={gateway}:{tcp}"),
            format!("gateway-udp={gateway}:{udp}"),
        ]
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_file(&self.memory);
        if let Ok(socket) = UdpSocket::bind("127.0.0.1:0") {
            let _ = socket.send_to(b"end", ("127.0.0.1", self.udp.port()));
        }
    }
}

fn open_to_all(place: &Path, mode: u32) {
    fs::set_permissions(place, fs::Permissions::from_mode(mode)).unwrap();
}
