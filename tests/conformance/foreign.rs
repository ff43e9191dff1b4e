//! Servers that others wrote, and servers of other people's SDKs: the suite directly and through the
//! proxy, check by check.
//!
//! A check that succeeds directly and does not through the proxy fails the test, except the checks
//! that docs/reference/conformance.md lists with a reason. The page's numbers are held to as well;
//! with `PORTCULLIS_WRITE_DOCS=1` the test writes them.

use std::{collections::BTreeSet, fmt::Write as _, path::PathBuf, process::Stdio, sync::Mutex};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    gate, rmcp_server,
    suite::{LEGACY, MODERN, Place, Report, node},
    support::{in_time, root, sdk::node_program, target},
};

/// Column of the page's table with the numbers.
const COLUMNS: [&str; 3] = ["directly", "/servers/NAME/mcp", "/mcp"];

/// A server with what starts it.
pub enum Foreign {
    /// Of npm, in this package, with these arguments.
    Npm { package: &'static str, at: fn() -> PathBuf, args: &'static [&'static str] },
    /// Of this package of PyPI: `tests/sdks/python/conformance.py` with this argument.
    Python(&'static str),
    /// In this process.
    Rmcp,
}

pub const SERVER_EVERYTHING: Foreign = Foreign::Npm {
    package: "@modelcontextprotocol/server-everything",
    at: || {
        target(
            "tests/servers/node/node_modules/@modelcontextprotocol/server-everything/dist/index.js",
        )
    },
    args: &["streamableHttp"],
};
pub const FASTMCP: Foreign = Foreign::Python("fastmcp");
pub const MCP: Foreign = Foreign::Python("mcp");

/// Prints the address of a server that prints none.
const PRINT_URL: &str = "data:text/javascript,\
    import { Server } from 'node:net';\
    const { listen } = Server.prototype;\
    Server.prototype.listen = function (...args) {\
        this.once('listening', () => console.log(`http://127.0.0.1:${this.address().port}/mcp`));\
        return listen.apply(this, args);\
    };";

/// A running server. Dropping it ends it.
pub struct Running {
    pub url: String,
    _process: Option<Child>,
}

impl Foreign {
    pub async fn start(&self) -> Running {
        let mut command = match self {
            Self::Npm { at, args, .. } => {
                let mut command = Command::new(node());
                command.args(["--import", PRINT_URL]).arg(at()).args(*args).env("PORT", "0");
                command
            }
            Self::Python(package) => {
                let mut command = Command::new(target("tests/python/bin/python"));
                command.arg(root().join("tests/sdks/python/conformance.py")).arg(package);
                command
            }
            Self::Rmcp => return Running { url: rmcp_server::serve().await, _process: None },
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = in_time("a server's URL", async {
            loop {
                let line = lines.next_line().await.unwrap().expect("a URL");
                if line.starts_with("http://") {
                    break line;
                }
            }
        });
        let url = url.await;
        // A full pipe would stop the server.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Running { url, _process: Some(process) }
    }

    /// Its name on the page, with the installed version.
    pub fn name(&self) -> String {
        let (package, version) = match self {
            Self::Npm { package, at, .. } => {
                let at = at();
                let mut folders = at.ancestors().map(|folder| folder.join("node_modules"));
                let modules = folders.find(|folder| folder.join(package).exists());
                let manifest = modules.unwrap().join(package).join("package.json");
                let manifest = std::fs::read(manifest).unwrap();
                let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
                (*package, manifest["version"].as_str().unwrap().to_owned())
            }
            Self::Python(package) => {
                let locked = root().join("tests/sdks/python/requirements.txt");
                let locked = std::fs::read_to_string(locked).unwrap();
                let prefix = format!("{package}==");
                let line = locked.lines().find_map(|line| line.strip_prefix(&prefix));
                (*package, line.unwrap().trim_end_matches(" \\").to_owned())
            }
            Self::Rmcp => {
                let locked = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
                let (_, locked) = locked.split_once("name = \"rmcp\"\nversion = \"").unwrap();
                ("rmcp", locked.split('"').next().unwrap().to_owned())
            }
        };
        format!("`{package}` {version}")
    }

    /// Runs the suites of these revisions directly and through the proxy, and compares.
    async fn compare(&self, revisions: &[&str]) {
        // One for each side: what one run changes in a server, the other must not see.
        let (direct, behind) = tokio::join!(self.start(), self.start());
        let gate = gate(&format!("url = \"{}\"", behind.url)).await;
        let urls = [direct.url.clone(), gate.url(crate::OWN), gate.url(crate::MERGED)];
        let mut wrong = String::new();
        for revision in revisions {
            let [direct, own, merged] = urls.each_ref().map(|url| Report::of_all(url, revision));
            let (direct, own, merged) = tokio::join!(direct, own, merged);
            let mut reports = [direct, own, merged];
            let listed = listed(&self.name(), revision);
            let numbers = reports.each_ref().map(Report::numbers);
            if numbers_hold(&self.name(), revision, &numbers).is_err() {
                for (report, url) in reports.iter_mut().zip(&urls) {
                    report.run_timed_again(url, revision).await;
                }
            }
            for index in [1, 2] {
                let (first, through) = reports.split_at_mut(index);
                let worse = through[0].worse_than(&first[0]);
                let is_listed = |place: &Place| {
                    listed.iter().any(|(path, listed)| path == COLUMNS[index] && listed == place)
                };
                let scenarios: BTreeSet<_> = worse
                    .into_iter()
                    .filter(|(place, _)| !is_listed(place))
                    .map(|((scenario, _), _)| scenario)
                    .collect();
                for scenario in scenarios {
                    let again = "does worse through the proxy, and is run again";
                    through[0].tell(&format!("{scenario} {again}"));
                    through[0].run_again(&scenario, &urls[index], revision).await;
                }
            }
            for (index, path) in COLUMNS.iter().enumerate().skip(1) {
                let worse = reports[index].worse_than(&reports[0]);
                let of_path = |(at, _): &&(String, Place)| at == path;
                let listed: Vec<_> =
                    listed.iter().filter(of_path).map(|(_, place)| place).collect();
                for (place, text) in &worse {
                    if !listed.contains(&place) {
                        writeln!(wrong, "{revision} at {path}: {text}").unwrap();
                    }
                }
                for place in listed {
                    if !worse.iter().any(|(worse, _)| worse == place) {
                        writeln!(wrong, "{revision} at {path}: {place:?} is listed").unwrap();
                    }
                }
            }
            let numbers = reports.map(|report| report.numbers());
            println!("{} {revision}: {numbers:?}", self.name());
            if let Err(why) = numbers_hold(&self.name(), revision, &numbers) {
                wrong += &why;
            }
        }
        gate.stop().await;
        assert!(wrong.is_empty(), "{}: worse through the proxy:\n{wrong}", self.name());
    }
}

pub const PAGE: &str = "docs/reference/conformance.md";
/// Head of the page's table with the numbers.
const HEAD: &str = "| server | suite | directly | `/servers/NAME/mcp` | `/mcp`, with an empty prefix |\n\
    |---|---|---|---|---|\n";

/// The name of a server on the page, without its version.
fn bare_name(name: &str) -> &str {
    name.split(' ').next().unwrap_or(name)
}

/// The cells of a row.
pub fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split('|').map(str::trim).collect()
}

/// The checks that the page lists as worse through the proxy, with the column of the path.
fn listed(server: &str, revision: &str) -> Vec<(String, Place)> {
    let page = std::fs::read_to_string(root().join(PAGE)).unwrap();
    let mut found = Vec::new();
    for row in page.lines().filter(|line| line.starts_with('|')) {
        let cells = cells(row);
        if let [name, suite, path, scenario, check, reason] = cells[..]
            && (bare_name(name), suite) == (bare_name(server), revision)
        {
            assert!(!reason.is_empty(), "a row of {PAGE} without a reason: {row}");
            let bare = |cell: &str| cell.trim_matches('`').to_owned();
            let place = (bare(scenario), bare(check));
            let paths: &[&str] = match path {
                "both" => &COLUMNS[1..],
                path => &[COLUMNS[1..].iter().find(|column| **column == bare(path)).unwrap()],
            };
            found.extend(paths.iter().map(|path| ((*path).to_owned(), place.clone())));
        }
    }
    found
}

/// Replaces the rows of the page's table with this head.
pub fn write_rows(head: &str, change: impl FnOnce(Vec<String>) -> Vec<String>) {
    // Several tests write at once.
    static PAGE_LOCK: Mutex<()> = Mutex::new(());
    let _lock = PAGE_LOCK.lock();
    let path = root().join(PAGE);
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, table) = page.split_once(head).unwrap();
    let (rows, after) = table.split_once("\n\n").unwrap_or((table, ""));
    let rows = change(rows.lines().map(str::to_owned).collect());
    std::fs::write(path, format!("{before}{head}{}\n\n{after}", rows.join("\n"))).unwrap();
}

/// Holds the page's row of this server and suite to these numbers, or writes the row.
fn numbers_hold(server: &str, revision: &str, numbers: &[(usize, usize); 3]) -> Result<(), String> {
    let name = bare_name(server);
    let is_row = |line: &&str| {
        let cells = cells(line);
        cells.len() == 5 && bare_name(cells[0]) == name && cells[1] == revision
    };
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        let [direct, own, merged] = numbers.map(|(passed, failed)| format!("{passed}, {failed}"));
        let new = format!("| {server} | {revision} | {direct} | {own} | {merged} |");
        write_rows(HEAD, |rows| {
            let mut rows: Vec<_> = rows.into_iter().filter(|row| !is_row(&row.as_str())).collect();
            rows.push(new);
            rows.sort_unstable();
            rows
        });
        return Ok(());
    }
    let page = std::fs::read_to_string(root().join(PAGE)).unwrap();
    let (_, table) = page.split_once(HEAD).unwrap();
    let row = table.lines().take_while(|line| line.starts_with('|')).find(is_row);
    let row = row.filter(|row| cells(row)[0] == server);
    let row = row.ok_or_else(|| format!("{PAGE} has no row of {server}, {revision}\n"))?;
    for ((cell, (passed, failed)), column) in cells(row)[2..].iter().zip(numbers).zip(COLUMNS) {
        let of_page =
            cell.split_once(", ").map(|(passed, failed)| (passed.parse(), failed.parse()));
        let Some((Ok::<usize, _>(at_least), Ok::<usize, _>(at_most))) = of_page else {
            return Err(format!("{PAGE}: {row} has a cell without numbers\n"));
        };
        if *passed < at_least || *failed > at_most {
            return Err(format!(
                "{revision} {column}: {passed} succeed and {failed} fail; {PAGE} has {cell}\n"
            ));
        }
    }
    Ok(())
}

#[tokio::test]
async fn server_everything_is_no_worse_through_the_proxy() {
    SERVER_EVERYTHING.compare(&[LEGACY]).await;
}

fn typescript() -> PathBuf {
    node_program("typescript", "conformance.mjs")
}

#[tokio::test]
async fn the_first_line_of_the_typescript_sdk_is_no_worse_through_the_proxy() {
    let package = "@modelcontextprotocol/sdk";
    Foreign::Npm { package, at: typescript, args: &["v1"] }.compare(&[LEGACY]).await;
}

#[tokio::test]
async fn the_second_line_of_the_typescript_sdk_is_no_worse_through_the_proxy() {
    let package = "@modelcontextprotocol/server";
    Foreign::Npm { package, at: typescript, args: &["v2"] }.compare(&[LEGACY, MODERN]).await;
}

#[tokio::test]
async fn the_python_sdk_is_no_worse_through_the_proxy() {
    MCP.compare(&[LEGACY, MODERN]).await;
}

#[tokio::test]
async fn fastmcp_is_no_worse_through_the_proxy() {
    FASTMCP.compare(&[LEGACY, MODERN]).await;
}

#[tokio::test]
async fn rmcp_is_no_worse_through_the_proxy() {
    Foreign::Rmcp.compare(&[LEGACY, MODERN]).await;
}
