//! Real programs: curl, Python and Node.

use std::{path::Path, process::Stdio};

use portcullis_egress::Limits;
use tokio::{process::Command, time::timeout};

use super::support::{Origin, SOON, World, code};

struct Scene {
    tls: Origin,
    web: Origin,
    world: World,
    folder: tempfile::TempDir,
}

async fn scene() -> Scene {
    let tls = Origin::tls("tls.example").await;
    let web = Origin::clear().await;
    let listed = [
        format!("tls.example:{}=127.0.0.1", tls.port),
        format!("http://web.example:{}=127.0.0.1", web.port),
    ];
    let world = World::new(&listed, Limits::default()).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), &tls.certificate).unwrap();
    Scene { tls, web, world, folder }
}

impl Scene {
    fn ca(&self) -> String {
        self.folder.path().join("ca.pem").display().to_string()
    }

    fn tls_url(&self) -> String {
        format!("https://tls.example:{}/deep", self.tls.port)
    }

    fn web_url(&self) -> String {
        format!("http://web.example:{}/deep", self.web.port)
    }
}

/// Whether the program succeeded, and its output.
async fn run(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> (bool, String) {
    let run = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", std::env::var_os("HOME").unwrap_or(Path::new("/").into()))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(3 * SOON, run).await.unwrap().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn curl_reaches_listed_hosts_only() {
    let scene = scene().await;
    let (ca, at) = (scene.ca(), scene.world.proxy);
    for proxy in [format!("http://{at}"), format!("socks5h://{at}"), format!("socks5h://u:p@{at}")]
    {
        for url in [scene.tls_url(), scene.web_url()] {
            let (well, printed) =
                run("curl", &["-sS", "--cacert", &ca, "-x", &proxy, &url], &[]).await;
            assert!(well && printed.starts_with("GET /deep HTTP/1.1"), "{proxy} {url}: {printed}");
            assert_eq!(code(&scene.world.reported().await), "Closed");
        }
    }
    // Through a tunnel, in plain text.
    let proxy = format!("http://{at}");
    let (well, printed) = run("curl", &["-sS", "-p", "-x", &proxy, &scene.web_url()], &[]).await;
    assert!(well && printed.starts_with("GET /deep HTTP/1.1"), "{printed}");
    assert_eq!(code(&scene.world.reported().await), "Closed");
    // Directly, at the host's address inside.
    let direct = scene.world.direct("tls.example", scene.tls.port).await;
    let to = format!("tls.example:{}:{direct}", scene.tls.port);
    let (well, printed) =
        run("curl", &["-sS", "--cacert", &ca, "--connect-to", &to, &scene.tls_url()], &[]).await;
    assert!(well && printed.starts_with("GET /deep HTTP/1.1"), "{printed}");
    assert_eq!(code(&scene.world.reported().await), "Closed");
    // The error names an unlisted host.
    let (well, printed) = run("curl", &["-sS", "-x", &proxy, "http://evil.example/"], &[]).await;
    assert!(well && printed.contains("egress = [\"http://evil.example:80\"]"), "{printed}");
    assert_eq!(code(&scene.world.reported().await), "not-listed");
    let (well, printed) = run("curl", &["-sS", "-x", &proxy, "https://evil.example/"], &[]).await;
    assert!(!well && printed.contains("403"), "{printed}");
    assert_eq!(code(&scene.world.reported().await), "not-listed");
}

#[tokio::test]
async fn python_reaches_listed_hosts() {
    let scene = scene().await;
    let (ca, proxy) = (scene.ca(), format!("http://{}", scene.world.proxy));
    let environment = [
        ("HTTP_PROXY", proxy.as_str()),
        ("HTTPS_PROXY", &proxy),
        ("http_proxy", &proxy),
        ("https_proxy", &proxy),
        ("SSL_CERT_FILE", &ca),
    ];
    let script = "import sys, urllib.request\nfor url in sys.argv[1:]:\n    print(urllib.request.urlopen(url, timeout=50).read().decode())";
    let arguments = ["-c", script, &scene.tls_url(), &scene.web_url()];
    let (well, printed) = run("python3", &arguments, &environment).await;
    assert!(well && printed.matches("GET /deep HTTP/1.1").count() == 2, "{printed}");
    let (well, printed) =
        run("python3", &["-c", script, "https://evil.example/"], &environment).await;
    assert!(!well && printed.contains("403"), "{printed}");
}

#[tokio::test]
async fn node_reaches_listed_hosts() {
    let scene = scene().await;
    let ca = scene.ca();
    let direct = scene.world.direct("tls.example", scene.tls.port).await;
    let script = r#"
        const [proxy, host, port, direct] = process.argv.slice(1);
        const http = require('node:http'), https = require('node:https'), tls = require('node:tls');
        const show = (answer) => answer.on('data', (part) => process.stdout.write(part));
        const [name, at] = proxy.split(':');
        const request = http.request({ host: name, port: at, method: 'CONNECT', path: `${host}:${port}` });
        request.on('connect', (answer, socket) => {
            const agent = new https.Agent();
            agent.createConnection = () => tls.connect({ socket, servername: host });
            https.get({ host, port, path: '/tunnel', agent }, show);
        }).end();
        // Without proxy support: the name resolves to the egress socket.
        const lookup = (name, options, done) => options.all
            ? done(null, [{ address: '127.0.0.1', family: 4 }]) : done(null, '127.0.0.1', 4);
        https.get({ host, port: direct, path: '/direct', lookup }, show);
    "#;
    let arguments = [
        "-e",
        script,
        &scene.world.proxy.to_string(),
        "tls.example",
        &scene.tls.port.to_string(),
        &direct.port().to_string(),
    ];
    let (well, printed) = run("node", &arguments, &[("NODE_EXTRA_CA_CERTS", &ca)]).await;
    assert!(
        well && printed.contains("GET /tunnel HTTP") && printed.contains("GET /direct HTTP"),
        "{printed}"
    );
}
