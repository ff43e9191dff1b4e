//! Records of about 800 bytes, as the audit log has them: much that repeats, some that never does.

/// How many terms of each are in the index.
pub const TERMS: usize = 5;

#[derive(Clone)]
pub struct Record {
    pub seq: u64,
    pub text: Vec<u8>,
    /// What it can be found by.
    pub terms: [String; TERMS],
}

/// xorshift: the same records in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn hex(&mut self, words: usize) -> String {
        (0..words).map(|_| format!("{:016x}", self.next())).collect()
    }
}

/// A record but for its number, which the writer gives.
pub fn make(random: &mut Random) -> Record {
    let (id, trace) = (random.hex(2), random.hex(2));
    let client = format!("client-{:02}", random.next() % 50);
    let server = format!("server-{}", random.next() % 10);
    let tool = format!("{server}__tool_{}", random.next() % 20);
    let (prev, digest) = (random.hex(4), random.hex(4));
    let (port, took) = (random.next() % 60000, random.next() % 5000);
    let text = format!(
        r#""recorded":"2026-11-21T16:00:00.{took:06}Z","prev":"{prev}","record":"intent","id":"{id}","at":"2026-11-21T16:00:00.{took:06}Z","call":{{"direction":"client-to-server","method":"tools/call","principal":"{client}","groups":["readers"],"verified":true,"transport":"http","client_addr":"10.1.2.3:{port}","session":"{trace}","revision":"2025-11-25","server":"{server}","target":{{"kind":"tool","name":"{tool}"}},"request":{{"bytes":{took},"digest":"hmac-sha256:{digest}","shape":{{"name":"string","arguments":{{"path":"string","depth":"number","filters":[{{"by":"string"}}]}}}}}},"trace":"{trace}"}},"ruling":{{"decision":"allowed","rules":[{{"id":"readers-may-read","file":"policies/groups.cedar","line":12}}],"policy":"sha256:0f3a9b"}},"times":{{"identity":{took},"policy":12,"audit":300}}}}"#
    );
    Record { seq: 0, text: text.into_bytes(), terms: [id, trace, client, server, tool] }
}

impl Record {
    /// The line that is stored.
    pub fn line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!(r#"{{"v":1,"seq":{},"#, self.seq).as_bytes());
        out.extend_from_slice(&self.text);
        out.push(b'\n');
    }
}

/// The number of a stored line, which must be whole.
pub fn seq(line: &[u8]) -> Option<u64> {
    let line: &str = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix(r#"{"v":1,"seq":"#)?;
    line.ends_with("}}").then(|| rest.split_once(',')?.0.parse().ok())?
}
