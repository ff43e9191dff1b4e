//! Runs the output of `server export k8s` with the engine, as a node would: the same images, users,
//! security settings and volumes, in one network namespace. There is no cluster here; the crate's
//! own tests check the objects against the schemas of Kubernetes.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    docker_registry::{Door, Registry, password},
    project::{self, curl, output, until},
};

/// What a node calls the folders of what it has written of a volume, one for each time.
const FIRST: &str = "..first";
const SECOND: &str = "..second";
const PATIENCE: Duration = Duration::from_secs(120);
/// As a client in the cluster writes it.
const HOST: &str = "Host: mcp-look-around.mcp:8811";

const POLICIES: &str = r#"
    @id("it-may-run")
    permit (
      principal == Portcullis::Server::"look-around",
      action == Portcullis::Action::"launch",
      resource
    ) when { DEVIATIONS.containsAll(resource.deviations) };

    @id("its-secrets")
    permit (
      principal == Portcullis::Server::"look-around",
      action == Portcullis::Action::"deliver_secret",
      resource
    );

    @id("agents")
    permit (
      principal,
      action in [Portcullis::Action::"connect", Portcullis::Action::"call_tool"],
      resource
    );
"#;

/// A folder with a config, and the registry with its server's image.
struct Ground {
    folder: tempfile::TempDir,
    _registry: Registry,
    /// The image's name in the registry.
    image: String,
    /// Values of secrets, which stand nowhere but in their files.
    token: String,
    certificate: String,
}

impl Ground {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::start(&Door::default());
        let image = format!("{}/look-around:1", registry.host());
        let build = folder.path().join("image");
        fs::create_dir(&build).unwrap();
        let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .join("tests/deploy/pod/server.c");
        let program = build.join("server");
        // Without a loader and libraries: the proxy's own have to do in its image.
        output(
            "cc",
            &["-static", "-O1", "-o", program.to_str().unwrap(), source.to_str().unwrap()],
        );
        // An image that would have its own code run before the program is confined.
        let preload = build.join("preload.so");
        let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .join("tests/deploy/pod/preload.c");
        output(
            "cc",
            &["-shared", "-fPIC", "-o", preload.to_str().unwrap(), source.to_str().unwrap()],
        );
        fs::write(build.join("ld.so.preload"), "/preload.so\n").unwrap();
        // What is unique is nobody else's to remove.
        fs::write(build.join("unique"), password()).unwrap();
        let lines = "FROM scratch\nCOPY server unique preload.so /\nCOPY ld.so.preload /etc/\n\
                     ENV GREETING=image KEPT=1 LD_PRELOAD=/preload.so LD_AUDIT=/preload.so\n\
                     ENTRYPOINT [\"/server\", \"first\"]\nCMD [\"unused\"]\n";
        fs::write(build.join("Dockerfile"), lines).unwrap();
        output("docker", &["build", "--quiet", "--tag", &image, build.to_str().unwrap()]);
        output("docker", &["push", "--quiet", &image]);
        let ground = Self {
            folder,
            _registry: registry,
            image,
            token: format!("t-{}", password()),
            certificate: format!("c-{}", password()),
        };
        fs::create_dir(ground.at("policies")).unwrap();
        ground.write_policies(r#"["pod-socket"]"#);
        ground.write_config("");
        ground
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_policies(&self, deviations: &str) {
        let text = POLICIES.replace("DEVIATIONS", deviations);
        fs::write(self.at("policies/all.cedar"), text).unwrap();
    }

    fn write_config(&self, more: &str) {
        let image = &self.image;
        let text = format!(
            r#"# a comment that stays here
[listen]
rest = true

[servers.look-around]
image = "{image}"
command = ["last"]
env = {{ GREETING = "config" }}
{more}
[servers.look-around.secrets]
TOKEN = {{ from = "env:LOOK_AROUND_TOKEN" }}
CERT = {{ from = "file:cert.pem", as = "file" }}

[servers.other]
url = "https://mcp.example.com/mcp"
"#
        );
        fs::write(self.at("portcullis.toml"), text).unwrap();
    }

    /// Runs the command line; whether it went well, and all that it said.
    fn portcullis(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    fn export(&self, more: &[&str]) -> (bool, String) {
        let image = format!("registry.example/portcullis@sha256:{}", "0".repeat(64));
        let export = ["server", "export", "k8s", "look-around", "--portcullis-image", &image];
        self.portcullis(&[&export[..], more].concat())
    }

    fn locked(&self) {
        let (locked, said) = self.portcullis(&["server", "lock", "look-around"]);
        assert!(locked, "{said}");
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "--force", &self.image]).output();
    }
}

fn objects(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents.map(|one| serde::Deserialize::deserialize(one).unwrap()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is = |one: &&Value| one["kind"] == kind && one["metadata"]["name"] == name;
    objects.iter().find(is).unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Puts a file into a volume as a node does: in a folder for this time, to which `..data` leads, and
/// to that what is seen.
fn put(volume: &Path, time: &str, (name, text): (&str, &str), group: Option<u32>) {
    let file = volume.join(time).join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o440)).unwrap();
    chown(&file, None, group).unwrap();
    let top = name.split('/').next().unwrap();
    for (link, to) in [("..data", PathBuf::from(time)), (top, Path::new("..data").join(top))] {
        if !volume.join(link).is_symlink() {
            symlink(to, volume.join(link)).unwrap();
        }
    }
}

/// The pod of manifests, run by the engine. What is not here is a node's own: image pulls, limits of
/// disk, network policies.
struct Pod<'a> {
    ground: &'a Ground,
    objects: Vec<Value>,
    spec: Value,
    name: String,
    volumes: tempfile::TempDir,
}

impl<'a> Pod<'a> {
    fn run(ground: &'a Ground, text: &str) -> Self {
        let objects = objects(text);
        let spec =
            of_kind(&objects, "Deployment", "mcp-look-around")["spec"]["template"]["spec"].clone();
        let name = format!("portcullis-pod-{}", std::process::id());
        let pod = Self { ground, objects, spec, name, volumes: tempfile::tempdir().unwrap() };
        fs::set_permissions(pod.volumes.path(), Permissions::from_mode(0o755)).unwrap();
        for volume in pod.list("volumes") {
            pod.make(&volume);
        }
        for container in pod.list("initContainers") {
            pod.start(&container, &["--rm", "--network", "none"]);
        }
        // As a node has it: the network is the pod's, and stays when a container is started again.
        let pause = pod.container("pause");
        let published = ["--publish", "127.0.0.1::8811", &ground.image];
        let run = ["run", "--detach", "--interactive", "--name", &pause];
        output("docker", &[&run[..], &published].concat());
        let network = format!("container:{pause}");
        for container in pod.list("containers") {
            pod.start(&container, &["--detach", "--network", &network]);
        }
        pod
    }

    fn list(&self, key: &str) -> Vec<Value> {
        self.spec[key].as_array().cloned().unwrap_or_default()
    }

    fn container(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    /// Makes a volume, as a node does: by the group of the pod, which may write.
    fn make(&self, volume: &Value) {
        let group = self.spec["securityContext"]["fsGroup"].as_u64().map(|id| id as u32);
        let folder = self.volumes.path().join(volume["name"].as_str().unwrap());
        fs::create_dir(&folder).unwrap();
        let put = |name: &str, text: &str| put(&folder, FIRST, (name, text), group);
        if volume["emptyDir"].is_object() {
            fs::set_permissions(&folder, Permissions::from_mode(0o2777)).unwrap();
        } else if volume["persistentVolumeClaim"].is_object() {
            chown(&folder, None, group).unwrap();
            fs::set_permissions(&folder, Permissions::from_mode(0o2775)).unwrap();
        } else if let Some(sources) = volume["projected"]["sources"].as_array() {
            for source in sources {
                let name = source["configMap"]["name"].as_str().unwrap();
                let data = &of_kind(&self.objects, "ConfigMap", name)["data"];
                for item in source["configMap"]["items"].as_array().unwrap() {
                    let text = data[item["key"].as_str().unwrap()].as_str().unwrap();
                    put(item["path"].as_str().unwrap(), text);
                }
            }
        } else {
            assert_eq!(volume["secret"]["secretName"], "mcp-look-around-secrets");
            for item in volume["secret"]["items"].as_array().unwrap() {
                let value = match item["key"].as_str().unwrap() {
                    "TOKEN" => &self.ground.token,
                    "CERT" => &self.ground.certificate,
                    other => panic!("no secret {other}"),
                };
                put(item["path"].as_str().unwrap(), value);
            }
        }
    }

    fn start(&self, container: &Value, more: &[&str]) {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let security = &container["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false);
        let mut words: Vec<String> = [
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
            "--env",
            "KUBERNETES_SERVICE_HOST=10.0.0.1",
        ]
        .map(str::to_owned)
        .to_vec();
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words.push(format!("--name={}", self.container(&text(&container["name"]))));
        words.push(format!("--user={}:{}", security["runAsUser"], security["runAsGroup"]));
        words.push(format!("--group-add={}", self.spec["securityContext"]["fsGroup"]));
        words.push(format!("--read-only={}", security["readOnlyRootFilesystem"]));
        let memory = text(&container["resources"]["limits"]["memory"]);
        let memory = memory.trim_end_matches('i').to_lowercase();
        words.push(format!("--memory={memory}"));
        words.push(format!("--memory-swap={memory}"));
        for one in container["env"].as_array().into_iter().flatten() {
            words.push(format!("--env={}={}", text(&one["name"]), text(&one["value"])));
        }
        for mount in container["volumeMounts"].as_array().unwrap() {
            let folder = self.volumes.path().join(text(&mount["name"]));
            let how = if mount["readOnly"] == true { "ro" } else { "rw" };
            words.push(format!(
                "--volume={}:{}:{how}",
                folder.display(),
                text(&mount["mountPath"])
            ));
        }
        let list = |key: &str| {
            container[key].as_array().into_iter().flatten().map(text).collect::<Vec<_>>()
        };
        let (command, arguments) = (list("command"), list("args"));
        if let Some(first) = command.first() {
            words.push(format!("--entrypoint={first}"));
        }
        words.push(match text(&container["image"]) {
            image if image.starts_with("registry.example/portcullis@") => {
                project::image().to_owned()
            }
            image => image,
        });
        words.extend(command.into_iter().skip(1).chain(arguments));
        let words: Vec<&str> =
            ["run"].into_iter().chain(words.iter().map(String::as_str)).collect();
        output("docker", &words);
    }

    fn url(&self, path: &str) -> String {
        let port = output("docker", &["port", &self.container("pause"), "8811/tcp"]);
        format!("http://{}{path}", port.lines().next().unwrap())
    }

    fn within(&self, arguments: &[&str]) -> String {
        let proxy = self.container("portcullis");
        output("docker", &[&["exec", &proxy, "/usr/bin/portcullis"][..], arguments].concat())
    }

    fn call(&self, key: &str, arguments: &Value) -> String {
        let body = json!({ "tool": "look-around__look", "arguments": arguments }).to_string();
        let bearer = format!("Authorization: Bearer {key}");
        let json = "Content-Type: application/json";
        curl(&["-d", &body, "-H", &bearer, "-H", HOST, "-H", json, &self.url("/invoke")])
    }

    /// Changes the policies as a node does, when their object was changed: all at once.
    fn change_policies(&self, text: &str) {
        let volume = self.volumes.path().join("config");
        let config = fs::read_to_string(volume.join("portcullis.toml")).unwrap();
        let lock = fs::read_to_string(volume.join("portcullis.lock")).unwrap();
        let group = self.spec["securityContext"]["fsGroup"].as_u64().map(|id| id as u32);
        for file in [
            ("portcullis.toml", &*config),
            ("portcullis.lock", &*lock),
            ("policies/all.cedar", text),
        ] {
            put(&volume, SECOND, file, group);
        }
        symlink(SECOND, volume.join("..new")).unwrap();
        fs::rename(volume.join("..new"), volume.join("..data")).unwrap();
        fs::remove_dir_all(volume.join(FIRST)).unwrap();
    }

    /// How many processes of the server's program there are.
    fn programs(&self) -> usize {
        let all = output("docker", &["top", &self.container("server"), "-eo", "pid,args"]);
        all.lines().filter(|line| line.trim_end().ends_with("/server first last")).count()
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        for name in ["install", "portcullis", "server", "pause"].map(|name| self.container(name)) {
            if std::thread::panicking()
                && let Ok(logs) = Command::new("docker").args(["logs", &name]).output()
            {
                let logs = [logs.stdout, logs.stderr].concat();
                eprintln!("{name}:\n{}", String::from_utf8_lossy(&logs));
            }
            let _ = Command::new("docker").args(["rm", "--force", &name]).output();
        }
    }
}

#[test]
fn pod_of_the_manifests_serves_its_clients() {
    let ground = Ground::new();
    ground.locked();
    let (exported, text) = ground.export(&[]);
    assert!(exported, "{text}");
    let pod = Pod::run(&ground, &text);
    let ready = || {
        let url = pod.url("/readyz");
        let asked = Command::new("curl").args(["-sf", "-m", "5", &url]).output().unwrap();
        asked.status.success().then_some(())
    };
    until("a proxy that is ready", PATIENCE, ready);
    let key = pod.within(&["client", "add", "agent"]);
    let key = key.trim();
    let told = pod.call(key, &json!({}));
    for seen in [
        "uid=65534 gid=65534",
        "args=3 last=last",
        "home=/tmp",
        "greeting=config",
        "cluster=none",
        &format!("token={}", ground.token.len()),
        &format!("file={}", ground.certificate.len()),
        "root=0 tmp=1",
        "state=0 config=0 listens=0",
        "joins=0 reaches=0 preload=none",
    ] {
        assert!(told.contains(seen), "{seen}: {told}");
    }
    // The engine's list of system calls, and the three of ours.
    let filters = told.split("filters=").nth(1).and_then(|rest| rest.split(' ').next());
    assert_eq!(filters, Some("4"), "{told}");
    assert!(pod.call("nobody", &json!({})).contains("key"));

    // What a server leaves behind ends with it.
    pod.call(key, &json!({ "leave": true }));
    assert_eq!(pod.programs(), 2);
    pod.within(&["server", "restart", "look-around"]);
    assert!(pod.call(key, &json!({})).contains("uid=65534"));
    until("the end of what was left", PATIENCE, || (pod.programs() == 1).then_some(()));

    // Nor does one go on that has killed who started it.
    pod.call(key, &json!({ "kill": true }));
    until("the end of one that killed its parent", PATIENCE, || {
        (pod.programs() == 0).then_some(())
    });
    until("another in its place", PATIENCE, || {
        pod.call(key, &json!({})).contains("uid=65534").then_some(())
    });

    // What waits for the proxy's port ends with the proxy, which comes back to it.
    assert!(pod.call(key, &json!({ "bind": true })).contains("uid=65534"));
    assert_eq!(pod.programs(), 2);
    let proxy = pod.container("portcullis");
    output("docker", &["kill", &proxy]);
    until("the proxy to be back", PATIENCE, || {
        output("docker", &["start", &proxy]);
        ready()
    });
    assert!(pod.call(key, &json!({})).contains("uid=65534"));
    assert_eq!(pod.programs(), 1);

    // A container that is started again is found again.
    output("docker", &["restart", "--time", "1", &pod.container("server")]);
    until("a server that is there again", PATIENCE, || {
        pod.call(key, &json!({})).contains("uid=65534").then_some(())
    });
    // Policies that change in the cluster are those that count.
    pod.change_policies("permit (principal, action == Portcullis::Action::\"connect\", resource);");
    until("policies that permit no call", PATIENCE, || {
        pod.call(key, &json!({})).contains("policy-denied").then_some(())
    });
    // What is on record is what a container's start is, and who called.
    let records = pod.within(&["audit", "query", "event = server-launched", "--format", "json"]);
    for seen in ["look-around:1", "container", "Container: its pod's, at ", "(pod-socket)"] {
        assert!(records.contains(seen), "{seen}: {records}");
    }
    for name in ["portcullis", "server"] {
        let logs = Command::new("docker").args(["logs", &pod.container(name)]).output().unwrap();
        let logs = String::from_utf8([logs.stdout, logs.stderr].concat()).unwrap();
        assert!(!logs.contains(&ground.token) && !logs.contains(&ground.certificate), "{logs}");
        assert!(!logs.contains("PRELOADED"), "{logs}");
    }
}

#[test]
fn manifests_contain_only_settings_of_the_pod() {
    let ground = Ground::new();
    // What a tag means is not guessed.
    let (exported, said) = ground.export(&[]);
    assert!(!exported && said.contains("portcullis server lock look-around"), "{said}");
    assert!(said.contains("portcullis.toml:6"), "{said}");
    ground.locked();
    let (exported, text) = ground.export(&["--namespace", "tools"]);
    assert!(exported, "{text}");
    for hidden in ["LOOK_AROUND_TOKEN", "cert.pem", "a comment", "mcp.example.com"] {
        assert!(!text.contains(hidden), "{hidden}: {text}");
    }
    let all = objects(&text);
    assert!(all.iter().all(|one| one["kind"] != "Secret"));
    let config = &of_kind(&all, "ConfigMap", "mcp-look-around-config")["data"];
    let config = config["portcullis.toml"].as_str().unwrap();
    for said in [
        "from = \"file:/etc/portcullis-secrets/TOKEN\"",
        "mcp-look-around.tools.svc.cluster.local:8811",
        "sharing = \"shared\"",
        &format!("image = \"{}\"", ground.image),
    ] {
        assert!(config.contains(said), "{said}: {config}");
    }
    // As files, with what puts them together.
    let (exported, said) = ground.export(&["--output", "out"]);
    assert!(exported, "{said}");
    let written: Value =
        serde_yaml_ng::from_str(&fs::read_to_string(ground.at("out/kustomization.yaml")).unwrap())
            .unwrap();
    for file in written["resources"].as_array().unwrap() {
        assert!(ground.at("out").join(file.as_str().unwrap()).exists(), "{file}");
    }
}

#[test]
fn settings_impossible_in_a_pod_are_refused_with_position() {
    let ground = Ground::new();
    ground.locked();
    let refused = |more: &str, options: &[&str], why: &[&str]| {
        ground.write_config(more);
        let (exported, said) = ground.export(options);
        let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(!exported, "{more}: {said}");
        for word in why {
            assert!(flat.contains(word), "{more}: {word}: {said}");
        }
    };
    refused("hardening = { network = true }", &[], &["portcullis.toml:9", "egress"]);
    refused("mounts = [\"./data:/data\"]", &[], &["portcullis.toml:9", "--claim /data=NAME"]);
    refused("", &["--claim", "/x=y"], &["none of `mounts`"]);
    refused("sharing = \"per-client\"", &[], &["portcullis.toml:9", "sharing"]);
    refused(
        "\n[servers.look-around.secrets.OWN]\nby-client = { agent = \"env:OWN\" }\n",
        &[],
        &["portcullis.toml:11", "a secret of its own"],
    );
    refused("runtime = \"runsc\"", &[], &["portcullis.toml:9", "--runtime-class"]);
    refused("hardening = { user = \"0:0\" }", &[], &["portcullis.toml:9", "root"]);
    refused(
        "hardening = { user = \"65532:1\" }",
        &[],
        &["portcullis.toml:9", "that of the proxy in the pod"],
    );
    refused(
        "hardening = { cap-add = [\"CAP_SYS_ADMIN\"] }",
        &[],
        &["portcullis.toml:9", "SYS_ADMIN"],
    );
    refused(
        "\n[[audit.witness]]\nfile = \"w\"\n",
        &[],
        &["portcullis.toml:10", "--leave-out audit.witness"],
    );
    // Policies are asked what the pod's proxy will ask them.
    ground.write_config("");
    ground.write_policies("[\"egress\"]");
    let (exported, said) = ground.export(&[]);
    assert!(!exported && said.contains("pod-socket"), "{said}");
    ground.write_policies("[\"pod-socket\", \"mounts\"]");
    ground.write_config("mounts = [\"./data:/data:rw\"]");
    let (exported, said) = ground.export(&["--claim", "/data=notes"]);
    assert!(exported && said.contains("claimName: notes"), "{said}");
}
