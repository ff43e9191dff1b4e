//! Uses the function of the host that the name of the tool asks for, and refuses with what it got.

use std::sync::OnceLock;

use guests::*;

struct Probe;
guests::export!(Probe);

/// The tests put the port of their own server here.
const HOST: &str = "localhost:54321";
const TOKEN: &str = "TOKEN";

static CONFIG: OnceLock<String> = OnceLock::new();

impl Guest for Probe {
    fn describe() -> Manifest {
        Manifest {
            hosts: vec![format!("http://{HOST}")],
            secrets: vec![TOKEN.into()],
            ..manifest("probe", "tools/call")
        }
    }

    fn start(config: String) -> Result<(), String> {
        if config.contains("never") {
            return Err(format!("no: {}", secrets::get(TOKEN).unwrap_or_default()));
        }
        if config.contains("reach") {
            let answer = get(&format!("http://{HOST}/"));
            return Err(format!("{answer:?}"));
        }
        if config.contains("talk") {
            (0..8).for_each(|_| log(Level::Info, "beginning"));
        }
        CONFIG.set(config).map_err(|_| "it began twice".into())
    }

    fn inspect(message: Message) -> Result<Verdict, String> {
        let Target::Tool(wanted) = &message.target else { return Ok(verdict(Decision::Pass)) };
        let token = secrets::get(TOKEN).unwrap_or_default();
        let (what, rest) = wanted.split_once(' ').unwrap_or((wanted, ""));
        Ok(verdict(match what {
            "config" => refuse("got", CONFIG.get().cloned().unwrap_or_default()),
            "exchange" => refuse("got", message.exchange),
            "clock" => {
                let (first, then) = (clock::monotonic(), clock::monotonic());
                refuse("got", format!("{} {}", clock::now(), then >= first))
            }
            "random" => {
                let (one, two) = (random::bytes(16), random::bytes(16));
                refuse("got", format!("{} {}", one.len(), one != two))
            }
            "random-much" => refuse("got", random::bytes(4097).len().to_string()),
            "count" => {
                for at in 0..100 {
                    metrics::count(&format!("n{at}"), 2);
                }
                metrics::count("no name", 1);
                Decision::Pass
            }
            "talk" => {
                (0..8).for_each(|_| log(Level::Info, "talking"));
                Decision::Pass
            }
            "starve-and-trap" => {
                // More than it may have, which is no harm by itself.
                let more = core::arch::wasm32::memory_grow::<0>(4_096);
                // SAFETY: not sound at all, which is the point: there is no such function.
                let none: fn() -> usize =
                    unsafe { std::mem::transmute(std::hint::black_box(1_000_000 + more)) };
                refuse("got", none().to_string())
            }
            "add" => refuse("got", format!("{:?}", state::add("n", 1))),
            "fill" => {
                let mut at = 0;
                loop {
                    if let Err(error) = state::set(&at.to_string(), &[1; 1000]) {
                        break refuse("got", format!("{at} {error:?}"));
                    }
                    at += 1;
                }
            }
            "get" => refuse("got", format!("{:?}", get(rest))),
            "hold-and-get" => {
                let held = std::hint::black_box(vec![1_u8; 50 << 20]);
                refuse("got", format!("{:?} {}", get(rest), held.len()))
            }
            "get-and-trap" => {
                let _ = get(rest);
                panic!("on purpose")
            }
            "get-often" => {
                let all: Vec<_> = (0..20).map(|_| get(rest).is_ok()).collect();
                refuse("got", all.iter().filter(|ok| **ok).count().to_string())
            }
            "secrets" => refuse("got", format!("{:?} {:?}", token.len(), secrets::get("OTHER"))),
            "leak" => {
                log(Level::Error, &format!("the token is {token}"));
                return Ok(Verdict {
                    findings: vec![Finding { code: "seen".into(), message: token.clone() }],
                    decision: Decision::Refuse(Refusal {
                        code: "leak".into(),
                        reason: token.clone(),
                        detail: Some(token),
                    }),
                    labels: vec![],
                });
            }
            "leak-replace" => Decision::Replace(format!(
                "{{\"name\":\"leak-replace\",\"arguments\":{{\"x\":\"{token}\"}}}}"
            )),
            "leak-label" => {
                return Ok(Verdict { labels: vec![token], ..verdict(Decision::Pass) });
            }
            "leak-error" => return Err(token),
            _ => Decision::Pass,
        }))
    }
}

fn get(url: &str) -> Result<String, http::Error> {
    let answer = http::send(&http::Request {
        method: "GET".into(),
        url: url.replace("HOST", HOST),
        headers: vec![("x-probe".into(), "1".into())],
        body: None,
        timeout_ms: Some(2_000),
    })?;
    Ok(format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)))
}
