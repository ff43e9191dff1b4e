//! Reverse proxies from Debian in front of Portcullis, each on its own free port.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::until;

/// A running reverse proxy. Dropping it kills it.
pub struct Front {
    pub addr: SocketAddr,
    _child: Child,
    _folder: TempDir,
}

impl Front {
    /// nginx with `proxy_pass` and these additional lines.
    pub async fn nginx(gate: SocketAddr, lines: &str) -> Self {
        let config = |addr: SocketAddr, dir: &Path| {
            let dir = dir.display();
            let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|name| format!("{name}_temp_path {dir}/{name};\n"))
                .concat();
            format!(
                "daemon off;\nmaster_process off;\nuser root;\npid {dir}/pid;\n\
                 events {{}}\nhttp {{\naccess_log off;\n{temporary}\
                 server {{\nlisten {addr};\nlocation / {{\nproxy_pass http://{gate};\n{lines}\n}}\n}}\n}}\n"
            )
        };
        Self::start("nginx", config, |program, file| {
            program.arg("-e").arg("stderr").arg("-c").arg(file);
        })
        .await
    }

    /// HAProxy in a mode (`http` or `tcp`), with these lines for its server and these options after
    /// the server's address.
    pub async fn haproxy(gate: SocketAddr, mode: &str, lines: &str, options: &str) -> Self {
        let config = |addr: SocketAddr, _: &Path| {
            format!(
                "defaults\nmode {mode}\ntimeout connect 5s\ntimeout client 60s\ntimeout server 60s\n\
                 listen gate\nbind {addr}\n{lines}\nserver gate {gate} {options}\n"
            )
        };
        Self::start("haproxy", config, |program, file| {
            program.arg("-db").arg("-f").arg(file);
        })
        .await
    }

    /// Caddy with `reverse_proxy` and nothing else.
    pub async fn caddy(gate: SocketAddr) -> Self {
        let config = |addr: SocketAddr, _: &Path| {
            format!(
                "{{\nadmin off\nauto_https off\n}}\nhttp://:{} {{\nbind {}\nreverse_proxy {gate}\n}}\n",
                addr.port(),
                addr.ip()
            )
        };
        Self::start("caddy", config, |program, file| {
            program.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
        })
        .await
    }

    async fn start(
        program: &str,
        config: impl Fn(SocketAddr, &Path) -> String,
        arguments: impl Fn(&mut Command, &Path),
    ) -> Self {
        let folder = tempfile::Builder::new().prefix("front.").tempdir().unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = free.local_addr().unwrap();
        drop(free);
        let file = folder.path().join("config");
        std::fs::write(&file, config(addr, folder.path())).unwrap();
        let mut command = Command::new(program);
        arguments(&mut command, &file);
        // Debian installs nginx and HAProxy outside the default `PATH` of users.
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{path}:/usr/sbin"))
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
        until(&format!("{program} to listen"), async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{program} ended with {status}");
            }
            tokio::net::TcpStream::connect(addr).await.ok().map(drop)
        })
        .await;
        Self { addr, _child: child, _folder: folder }
    }
}
