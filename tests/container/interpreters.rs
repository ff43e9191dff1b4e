//! The languages of servers under the seccomp profile. Interpreters are packed from this machine;
//! Python's library is mounted, like a server's data.

use std::path::{Path, PathBuf};

use portcullis_runtime::mount::Mount;

use crate::support::{engine, run, spec};

/// The first of these programs that is there.
fn program(candidates: &[&str]) -> PathBuf {
    let found = candidates.iter().map(Path::new).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("none of {candidates:?} is installed (tests/run does)")).into()
}

#[tokio::test]
async fn node_runs() {
    let engine = engine().await;
    let node = engine.pack(&program(&["/usr/bin/node", "/usr/local/bin/node"])).await.unwrap();
    // Files, threads, timers, name service, interfaces, a local socket, compiled code, processes.
    let script = r#"
        const fs = require('fs'), net = require('net'), os = require('os');
        const { Worker } = require('worker_threads'), { spawnSync } = require('child_process');
        (async () => {
          fs.writeFileSync('/tmp/a', 'x'.repeat(1e6));
          const read = (await fs.promises.readFile('/tmp/a')).length;
          const interfaces = Object.keys(os.networkInterfaces()).length;
          const worker = await new Promise((done) => new Worker(
            "require('worker_threads').parentPort.postMessage(6 * 7)", { eval: true }).on('message', done));
          const echoed = await new Promise((done) => {
            const server = net.createServer((s) => s.pipe(s)).listen('/tmp/s', () =>
              net.connect('/tmp/s').on('data', (d) => { server.close(); done(d.toString()); }).end('hi'));
          });
          const wasm = new WebAssembly.Module(Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0)) instanceof WebAssembly.Module;
          const child = spawnSync(process.execPath, ['-p', '1 + 1']).stdout.toString().trim();
          console.log(JSON.stringify({ read, interfaces, worker, echoed, wasm, child }));
        })();
    "#;
    let ran = run(&engine, &spec(node, &["-e", script])).await;
    assert_eq!(ran.exit.code, 0, "{} {:?}", ran.stderr, ran.exit);
    let told: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let expected = serde_json::json!({
        "read": 1_000_000, "interfaces": 1, "worker": 42, "echoed": "hi", "wasm": true, "child": "2"
    });
    assert_eq!(told, expected, "{}", ran.stderr);
}

#[tokio::test]
async fn python_runs() {
    let engine = engine().await;
    let python = engine.pack(&program(&["/usr/bin/python3"])).await.unwrap();
    let script = r"
import asyncio, json, multiprocessing, os, socket, sqlite3, subprocess, sys, tempfile, threading

async def echo():
    server = await asyncio.start_unix_server(
        lambda r, w: asyncio.ensure_future(answer(r, w)), path='/tmp/s')
    reader, writer = await asyncio.open_unix_connection('/tmp/s')
    writer.write(b'hi\n')
    line = await reader.readline()
    server.close()
    return line.decode().strip()

async def answer(reader, writer):
    writer.write(await reader.readline())

found = []
thread = threading.Thread(target=lambda: found.append(42))
thread.start()
thread.join()
with tempfile.TemporaryFile() as file:
    file.write(b'x' * 1000000)
    size = file.tell()
queue = multiprocessing.get_context('fork').Queue()
process = multiprocessing.get_context('fork').Process(target=queue.put, args=(7,))
process.start()
put = queue.get()
process.join()
child = subprocess.run([sys.executable, '-c', 'print(2)'], capture_output=True, text=True)
rows = sqlite3.connect('/tmp/db').execute('select 3').fetchone()[0]
print(json.dumps({'thread': found[0], 'size': size, 'queue': put, 'child': child.stdout.strip(),
    'rows': rows, 'echoed': asyncio.run(echo()), 'names': len(socket.if_nameindex())}))
";
    let mut spec = spec(python, &["-c", script]);
    spec.env =
        vec![("PYTHONHOME".into(), "/usr".into()), ("PYTHONDONTWRITEBYTECODE".into(), "1".into())];
    for folder in std::fs::read_dir("/usr/lib").unwrap().flatten() {
        let name = folder.file_name().to_string_lossy().into_owned();
        if name.starts_with("python3") && folder.path().is_dir() {
            spec.mounts.push(Mount {
                source: folder.path(),
                target: folder.path(),
                writable: false,
            });
        }
    }
    // Modules in C want libraries that Python itself is not linked with.
    let libraries = PathBuf::from(format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    spec.mounts.push(Mount { source: libraries.clone(), target: libraries, writable: false });
    let ran = run(&engine, &spec).await;
    assert_eq!(ran.exit.code, 0, "{} {:?}", ran.stderr, ran.exit);
    let told: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let expected = serde_json::json!({
        "thread": 42, "size": 1_000_000, "queue": 7, "child": "2", "rows": 3, "echoed": "hi", "names": 1
    });
    assert_eq!(told, expected, "{}", ran.stderr);
}
