//! How far a server is confined: one image under four sets of flags, looked at from outside by the
//! checks of docker-bench-security's section 5, and from inside by the probe.

mod section5;
mod sets;

use std::{
    collections::BTreeMap,
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use portcullis_runtime::container::Engine;
use serde_json::Value;

use section5::Verdict;
use sets::Set;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The probe. Default: `probe` beside this program
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
    /// A checkout of docker-bench-security: its script is run too, and has to come to the same
    #[arg(long, value_name = "FOLDER")]
    script: Option<PathBuf>,
}

/// What was found of one set.
pub(crate) struct Found {
    name: &'static str,
    checks: Vec<Verdict>,
    /// The probe's report, its attempts and the engine's inspection.
    report: Value,
    attempts: BTreeMap<String, String>,
    inspection: Value,
}

pub async fn run(args: &Args) -> anyhow::Result<()> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?;
    let probe = args.probe.clone().unwrap_or_else(|| folder.join("probe"));
    ensure!(probe.is_file(), "{} is not there: `cargo build` makes it", probe.display());
    let engine = Engine::connect(None).await?;
    let image = Image::without_user(&engine.pack(&probe).await?)?;
    let info: Value = serde_json::from_slice(&docker(&["info", "--format", "{{json .}}"])?)?;

    // A service of this host's, which nobody outside has a business with.
    let service = TcpListener::bind("0.0.0.0:0")?;
    let answering = UdpSocket::bind("0.0.0.0:0")?;
    let ports = (service.local_addr()?.port(), answering.local_addr()?.port());
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, asker)) = answering.recv_from(&mut question) {
            let _ = answering.send_to(&question[..length], asker);
        }
    });

    let mut all = Vec::new();
    for set in Set::ALL {
        eprintln!("{}", set.name());
        let running = set.start(&engine, &image.0, ports).await?;
        let inspection = inspection(running.id())?;
        let programs = String::from_utf8_lossy(&docker(&["top", running.id()])?).into_owned();
        let checks = section5::verdicts(&info, &inspection, &programs);
        if let Some(script) = &args.script {
            same_as_script(script, &inspection, &checks)?;
        }
        let told = running.told().clone();
        running.stop().await;
        let attempts = serde_json::from_value(told["attempts"].clone())?;
        let report = told["report"].clone();
        all.push(Found { name: set.name(), checks, report, attempts, inspection });
    }
    print(&info, &all);
    Ok(())
}

/// Runs the engine's command line, which whoever reads this can repeat.
fn docker(words: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output = Command::new("docker").args(words).output().context("docker")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "docker {}: {}", words.join(" "), said.trim());
    Ok(output.stdout)
}

/// The image's files under the settings that most images have: it names no user.
struct Image(String);

impl Image {
    fn without_user(packed: &str) -> anyhow::Result<Self> {
        let name = format!("bench-hardening-image-{}", std::process::id());
        let config: Value =
            serde_json::from_slice(&docker(&["inspect", "--format", "{{json .Config}}", packed])?)?;
        let mut import = Command::new("docker");
        import.arg("import").args(["--change", &format!("ENTRYPOINT {}", config["Entrypoint"])]);
        for set in config["Env"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            import.args(["--change", &format!("ENV {set}")]);
        }
        docker(&["create", "--name", &name, packed])?;
        let files = docker(&["export", &name]);
        docker(&["rm", &name])?;
        let mut files = std::io::Cursor::new(files?);
        let mut import = import.arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = import.stdin.take() {
            std::io::copy(&mut files, &mut stdin)?;
        }
        let output = import.wait_with_output()?;
        ensure!(output.status.success(), "docker import did not take the image");
        Ok(Self(String::from_utf8(output.stdout)?.trim().to_owned()))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = docker(&["rmi", &self.0]) {
            eprintln!("{error}");
        }
    }
}

fn inspection(id: &str) -> anyhow::Result<Value> {
    let all: Value = serde_json::from_slice(&docker(&["inspect", id])?)?;
    all.get(0).cloned().context("nothing inspected")
}

/// Runs docker-bench-security on this container alone, and compares.
fn same_as_script(script: &Path, inspection: &Value, checks: &[Verdict]) -> anyhow::Result<()> {
    let log = tempfile::tempdir()?;
    let file = log.path().join("log");
    let name = inspection["Name"].as_str().unwrap_or_default().trim_start_matches('/');
    let output = Command::new("bash")
        .args(["docker-bench-security.sh", "-b", "-c", "container_runtime", "-i", name, "-l"])
        .arg(&file)
        .current_dir(script)
        .output()
        .context("bash")?;
    let read = std::fs::read(file.with_extension("json"));
    let read = read.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let told: Value = serde_json::from_slice(&read)?;
    let sections = told["tests"].as_array().into_iter().flatten();
    let results = sections.flat_map(|section| section["results"].as_array().into_iter().flatten());
    let theirs: BTreeMap<&str, &str> = results
        .filter_map(|result| Some((result["id"].as_str()?, result["result"].as_str()?)))
        .collect();
    ensure!(!theirs.is_empty(), "the script told of nothing");
    for check in checks {
        let theirs = theirs.get(check.id).copied().unwrap_or("nothing");
        let ours = check.outcome.words();
        if !theirs.eq_ignore_ascii_case(ours) {
            eprintln!("{} of {name}: {ours} here, {theirs} there", check.id);
        }
    }
    Ok(())
}

fn print(info: &Value, all: &[Found]) {
    let version = info["ServerVersion"].as_str().unwrap_or("?");
    let kernel = info["KernelVersion"].as_str().unwrap_or("?");
    let cgroup = info["CgroupVersion"].as_str().unwrap_or("?");
    println!("Engine {version}, kernel {kernel}, cgroup v{cgroup}.\n");
    let names: Vec<&str> = all.iter().map(|found| found.name).collect();
    let head = |first: &str| {
        println!("| {first} | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    };
    head("section 5");
    for (at, check) in all[0].checks.iter().enumerate() {
        let outcomes = all.iter().map(|found| found.checks[at].outcome.words());
        println!("| {} {} | {} |", check.id, check.what, outcomes.collect::<Vec<_>>().join(" | "));
    }
    let line = |what: &str, of: &dyn Fn(&Found) -> String| {
        println!("| {what} | {} |", all.iter().map(of).collect::<Vec<_>>().join(" | "));
    };
    line("**passed, warned: score**", &|found| {
        let (passed, warned) = section5::score(&found.checks);
        format!("**{passed}, {warned}: {}**", passed - warned)
    });
    println!();
    head("inside");
    for (what, of) in INSIDE {
        line(what, &|found| of(found));
    }
    println!();
    head("attempt");
    // What an attempt has to be told of the host to be made is not told here. And what is sent to
    // an address that is nobody's may be dropped on its way, which nobody inside can see.
    let made = |name: &&String| {
        if *name == "dns-anywhere" {
            return false;
        }
        let outcomes = all.iter().map(|found| found.attempts[*name].as_str());
        !outcomes.clone().any(|out| out.starts_with("no ") && out.ends_with(" given"))
    };
    let names: Vec<&String> = all[0].attempts.keys().filter(made).collect();
    let (open, shut): (Vec<&String>, Vec<&String>) =
        names.iter().partition(|name| all.iter().any(|found| found.attempts[**name] == "ok"));
    for name in open {
        line(&format!("`{name}`"), &|found| match found.attempts[name].as_str() {
            "ok" => "**succeeds**".to_owned(),
            refused => refused.to_owned(),
        });
    }
    line("**succeed**", &|found| {
        let succeed = names.iter().filter(|name| found.attempts[**name] == "ok");
        format!("**{} of {}**", succeed.count(), names.len())
    });
    let shut: Vec<String> = shut.iter().map(|name| format!("`{name}`")).collect();
    println!("\nRefused by all: {}.", shut.join(", "));
}

type Row = (&'static str, fn(&Found) -> String);

const INSIDE: &[Row] = &[
    ("user", |f| format!("{}:{}", f.report["uid"], f.report["gid"])),
    ("capabilities it has, could get", |f| {
        let held = |set: &str| f.report["capabilities"][set].as_array().map_or(0, Vec::len);
        format!("{}, {}", held("effective"), held("bounding"))
    }),
    ("may gain privileges", |f| yes(f.report["no_new_privs"] != true)),
    ("system calls beyond a process that are let through", |f| {
        let calls = f.report["calls"].as_object().into_iter().flatten();
        let all = calls.clone().count();
        let through = calls.filter(|(_, outcome)| *outcome != "EPERM" && *outcome != "ENOSYS");
        format!("{} of {all}", through.count())
    }),
    ("kinds of sockets beyond those of the internet", |f| {
        let usual = ["unix", "inet", "inet-udp", "inet6", "netlink-route"];
        let open = f.report["sockets"].as_object().into_iter().flatten();
        let open = open.filter(|(kind, out)| *out == "ok" && !usual.contains(&kind.as_str()));
        list(open.map(|(kind, _)| kind.as_str()))
    }),
    ("folders that it can write to", |f| {
        list(f.report["writable"].as_array().into_iter().flatten().filter_map(Value::as_str))
    }),
    ("executes what it wrote", |f| {
        let ways = ["exec-tmp", "exec-shm", "exec-by-loader", "exec-memory"];
        list(ways.into_iter().filter(|way| f.attempts[*way] == "ok"))
    }),
    ("network interfaces", |f| {
        list(f.report["interfaces"].as_array().into_iter().flatten().filter_map(Value::as_str))
    }),
    ("reaches the host by the gateway: TCP, UDP", |f| {
        let by = |name: &str| yes(f.attempts[name] == "ok");
        format!("{}, {}", by("host-gateway"), by("host-gateway-udp"))
    }),
    (
        "has an answer from 169.254.169.254, or a way there",
        |f| match f.attempts["metadata-address"].as_str() {
            "ok" => "answer".to_owned(),
            "ENETUNREACH" => "none".to_owned(),
            outcome => format!("way: {outcome}"),
        },
    ),
    ("has answers by DNS: of the host's resolvers, of the engine", |f| {
        let by = |name: &str| yes(f.attempts[name] == "ok");
        format!("{}, {}", by("dns-resolvers"), by("dns-of-engine"))
    }),
    ("memory, swap with it", |f| {
        let host = &f.inspection["HostConfig"];
        let mib = |field: &str| match host[field].as_i64() {
            None | Some(0) => "no limit".to_owned(),
            Some(-1) => "no limit".to_owned(),
            Some(bytes) => format!("{} MiB", bytes >> 20),
        };
        format!("{}, {}", mib("Memory"), mib("MemorySwap"))
    }),
    ("tasks", |f| match f.report["limits"]["pids"].as_u64() {
        Some(most) => most.to_string(),
        None => "no limit".to_owned(),
    }),
    ("open files, core dumps", |f| {
        let limit = |name: &str| f.report["limits"][name].as_str().unwrap_or("?").to_owned();
        format!("{}, {}", limit("open_files"), limit("core"))
    }),
    ("what it writes is kept on the host's disk", |f| {
        yes(f.inspection["LogPath"].as_str().is_some_and(|path| !path.is_empty()))
    }),
    ("starts again without who started it", |f| {
        let policy = f.inspection["HostConfig"]["RestartPolicy"]["Name"].as_str();
        yes(policy.is_some_and(|name| !["", "no"].contains(&name)))
    }),
    ("kernel of its own, user namespace of its own", |f| {
        let here = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        // The first namespace has all numbers, each as itself.
        let all = format!("0 0 {}", u32::MAX);
        format!("{}, {}", yes(f.report["kernel"] != here.trim()), yes(f.report["user_map"] != all))
    }),
];

fn yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    let items: Vec<&str> = items.collect();
    match items.len() {
        0 => "none".to_owned(),
        1..=6 => items.join(", "),
        more => format!("{more}: {} …", items[..4].join(", ")),
    }
}
