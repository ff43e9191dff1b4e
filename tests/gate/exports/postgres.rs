//! A real PostgreSQL, started for the test as an ordinary user.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::PathBuf,
    process::{Command, Output},
};

use tempfile::TempDir;

use super::{calls, exporting, stored};
use crate::support::{authority::Authority, credential, until};

/// A cluster in a folder of its own.
struct Cluster {
    folder: TempDir,
    bin: PathBuf,
    password: String,
    port: u16,
}

/// Debian keeps each version's programs apart and not in PATH.
fn programs() -> PathBuf {
    let newest = fs::read_dir("/usr/lib/postgresql")
        .ok()
        .and_then(|versions| versions.flatten().map(|version| version.path().join("bin")).max());
    newest.expect("no PostgreSQL in /usr/lib/postgresql: `tests/setup/packages` installs it")
}

impl Cluster {
    fn start(tls: Option<&Authority>) -> Self {
        let folder = tempfile::Builder::new().prefix("pg.").tempdir().unwrap();
        // Its programs do not run as root: the folder is then given to another user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if let Some(user) = Self::user() {
            nix::unistd::chown(folder.path(), Some(user.uid), Some(user.gid)).unwrap();
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let cluster = Self { folder, bin: programs(), password: credential(), port };
        cluster.hand_over("password", &cluster.password);
        let password = format!("--pwfile={}", cluster.path("password").display());
        cluster.run("initdb", &["-U", "audit", "--auth=scram-sha-256", &password, "--no-sync"]);
        let mut settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\n",
            cluster.folder.path().display()
        );
        if let Some(Authority { server: (certificate, key), .. }) = tls {
            settings.push_str("ssl = on\n");
            cluster.hand_over("data/server.crt", certificate);
            cluster.hand_over("data/server.key", key);
        }
        let conf = cluster.path("data/postgresql.conf");
        fs::write(&conf, fs::read_to_string(&conf).unwrap() + &settings).unwrap();
        cluster.up();
        cluster
    }

    fn user() -> Option<nix::unistd::User> {
        let root = nix::unistd::geteuid().is_root();
        root.then(|| nix::unistd::User::from_name("nobody").unwrap().expect("a user `nobody`"))
    }

    /// A file for its user alone.
    fn hand_over(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if let Some(user) = Self::user() {
            nix::unistd::chown(&path, Some(user.uid), Some(user.gid)).unwrap();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new(self.bin.join(program));
        command.args(["-D".as_ref(), self.path("data").as_os_str()]).args(args);
        command.current_dir(self.folder.path());
        if let Some(user) = Self::user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{program}: {output:#?}");
        output
    }

    fn up(&self) {
        let log = self.path("log").display().to_string();
        self.run("pg_ctl", &["start", "-w", "-s", "-l", &log]);
    }

    fn down(&self) {
        self.run("pg_ctl", &["stop", "-w", "-s", "-m", "immediate"]);
    }

    fn by_tcp(&self) -> String {
        format!("postgres://audit:{}@127.0.0.1:{}/postgres", self.password, self.port)
    }

    fn by_socket(&self) -> String {
        let folder = self.folder.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://audit:{}@{folder}:{}/postgres", self.password, self.port)
    }

    async fn query(&self, sql: &str) -> Vec<tokio_postgres::Row> {
        let (client, connection) =
            tokio_postgres::connect(&self.by_tcp(), tokio_postgres::NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        let rows = client.query(sql, &[]).await.unwrap();
        drop(client);
        connection.await.unwrap().unwrap();
        rows
    }

    async fn number(&self, sql: &str) -> i64 {
        self.query(sql).await[0].get(0)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut command = Command::new(self.bin.join("pg_ctl"));
        command.args(["stop", "-w", "-s", "-m", "immediate", "-D"]).arg(self.path("data"));
        if let Some(user) = Self::user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let _ = command.current_dir("/").output();
    }
}

const EXPORT: &str =
    "[[audit.export]]\nname = \"db\"\nto = { from = \"env:AUDIT_DB\" }\nbatch = 9\n";
const COUNT: &str = "select count(*) from portcullis_audit";

#[tokio::test]
async fn table_has_every_record_once_after_restarts_and_kills() {
    let cluster = Cluster::start(None);
    let url = cluster.by_socket();
    let mut gate = exporting(EXPORT).env("AUDIT_DB", &url).start().await;
    calls(&gate, 10).await;
    until("rows", async || (rows(&cluster).await > 5).then_some(())).await;
    cluster.down();
    calls(&gate, 10).await;
    cluster.up();
    calls(&gate, 10).await;
    // Killed in mid-export: what comes twice leaves one row.
    gate = gate.kill_9().await.start().await;
    calls(&gate, 10).await;
    let wanted = stored(&gate).await;
    until("all rows", async || (rows(&cluster).await >= wanted.len() as i64).then_some(())).await;
    let text = gate.log().join("\n");
    assert!(!text.contains(&cluster.password), "{text}");
    let written = gate.stop().await;
    let wanted = stored(&written).await;
    assert_eq!(rows(&cluster).await, wanted.len() as i64);
    let rows = cluster.query("select seq, line from portcullis_audit order by seq").await;
    for (row, (seq, line)) in rows.iter().zip(&wanted) {
        assert_eq!(row.get::<_, i64>(0), *seq as i64);
        assert_eq!(row.get::<_, &str>(1), line);
    }
    // The chain can be followed in the table itself, and hashes checked.
    let broken = "select count(*) from (select prev, lag(hash) over (order by seq) as before \
                  from portcullis_audit) t where before is not null and prev <> before";
    assert_eq!(cluster.number(broken).await, 0);
    let wrong = "select count(*) from portcullis_audit where hash <> \
                 encode(sha256('\\x00'::bytea || convert_to(line, 'UTF8')), 'hex')";
    assert_eq!(cluster.number(wrong).await, 0);
    let typed = "select count(*) from portcullis_audit where record = 'outcome' \
                 and total_us > 0 and recorded >= at and line::jsonb ->> 'server' = server";
    assert!(cluster.number(typed).await > 10);
}

async fn rows(cluster: &Cluster) -> i64 {
    let there = "select count(*) from pg_tables where tablename = 'portcullis_audit'";
    if cluster.number(there).await == 0 { 0 } else { cluster.number(COUNT).await }
}

#[tokio::test]
async fn tls_certificate_of_the_database_is_verified() {
    let ca = Authority::new();
    let cluster = Cluster::start(Some(&ca));
    let url = format!("{}?sslmode=require", cluster.by_tcp().replace("127.0.0.1", "localhost"));
    let export = format!("{EXPORT}ca-file = \"ca.pem\"\n");
    // Another authority than that of the server's certificate.
    let other =
        exporting(&export).file("ca.pem", Authority::new().certificate).env("AUDIT_DB", &url);
    let mut gate = other.start().await;
    let told = gate.logged("the refusal", |line| line.contains("can't be reached")).await;
    assert!(told.contains("ertificate") && !told.contains(&cluster.password), "{told}");
    let written = gate.stop().await;
    fs::write(written.path("ca.pem"), &ca.certificate).unwrap();
    let gate = written.start().await;
    calls(&gate, 3).await;
    until("rows", async || (rows(&cluster).await > 3).then_some(())).await;
    let encrypted = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) \
                     where ssl and application_name = 'portcullis'";
    assert_eq!(cluster.number(encrypted).await, 1);
    gate.stop().await;
}
