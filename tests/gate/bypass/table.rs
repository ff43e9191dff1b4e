//! What an attacker says to get at what is forbidden. `doors.rs` says what is filled in.

/// One attempt.
#[derive(Clone, Copy)]
pub struct Attempt {
    pub says: Says,
    /// The codes with which it may be refused, whatever the door.
    pub codes: &'static [&'static str],
    /// Whether it is a message that asks for no answer.
    pub silent: bool,
}

#[derive(Clone, Copy)]
pub enum Says {
    /// The members of a request's `params`.
    Params(&'static str, &'static str),
    /// A whole text.
    Whole(&'static str),
    /// One that is not a text.
    Bytes(&'static [u8]),
}

impl Attempt {
    /// The text, before anything is filled in.
    pub fn text(&self) -> Vec<u8> {
        match self.says {
            Says::Params(method, members) => format!(
                r#"{{"jsonrpc":"2.0","id":@id@,"method":"{method}","params":{{{members}@meta@}}}}"#
            )
            .into(),
            Says::Whole(text) => text.into(),
            Says::Bytes(bytes) => bytes.into(),
        }
    }
}

pub(super) const DENIED: &[&str] = &["policy-denied"];
/// A name that is none here is refused as one that is forbidden where nothing is known of it.
pub(super) const NONE: &[&str] = &["policy-denied", "unknown-target"];
pub(super) const TWICE: &[&str] = &["duplicate-key"];
/// Revision 2026-07-28 has such names in headers, too, where they cannot stand.
pub(super) const SHAPE: &[&str] = &["invalid-params", "header-mismatch"];
const NO_MESSAGE: &[&str] = &["invalid-request"];
pub(super) const NO_JSON: &[&str] = &["malformed"];
/// What is no params may be refused as what does not say its revision.
const ENVELOPE: &[&str] = &["invalid-request", "invalid-params", "method-unknown"];
const NO_METHOD: &[&str] = &["method-unknown"];
/// The same where a header cannot say it.
const SPELLED: &[&str] = &["method-unknown", "header-mismatch"];

const fn params(
    method: &'static str,
    members: &'static str,
    codes: &'static [&'static str],
) -> Attempt {
    Attempt { says: Says::Params(method, members), codes, silent: false }
}

pub(super) const fn call(members: &'static str, codes: &'static [&'static str]) -> Attempt {
    params("tools/call", members, codes)
}

const fn whole(text: &'static str, codes: &'static [&'static str]) -> Attempt {
    Attempt { says: Says::Whole(text), codes, silent: false }
}

const fn silent(text: &'static str, codes: &'static [&'static str]) -> Attempt {
    Attempt { says: Says::Whole(text), codes, silent: true }
}

const fn bytes(bytes: &'static [u8], codes: &'static [&'static str]) -> Attempt {
    Attempt { says: Says::Bytes(bytes), codes, silent: false }
}

/// As plainly as can be. What permits everything lets each of them pass.
pub const PLAIN: &[Attempt] = &[
    call(r#""name":"@wipe@","arguments":{}"#, DENIED),
    call(r#""name":"@alias@","arguments":{}"#, DENIED),
    call(r#""name":"@shred@","arguments":{}"#, DENIED),
    call(r#""name":"@vip@","arguments":{}"#, DENIED),
    call(r#""name":"@look@","arguments":{"path":"/etc/passwd"}"#, DENIED),
    call(r#""name":"@fetch@","arguments":{"url":"https://evil.example/"}"#, DENIED),
    call(r#""name":"@say@","arguments":{"word":"forbidden"}"#, DENIED),
    params("prompts/get", r#""name":"@secret@""#, DENIED),
    params("resources/read", r#""uri":"@server@://secret/1""#, NONE),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@secret@"},"argument":{"name":"a","value":"x"}"#,
        DENIED,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/resource","uri":"@server@://secret/{id}"},"argument":{"name":"id","value":"x"}"#,
        NONE,
    ),
];

/// Messages that are read one way here and another way there.
pub const TEXTS: &[Attempt] = &[
    whole("\u{feff}{\"jsonrpc\":\"2.0\",\"id\":@id@,\"method\":\"tools/call\",\"params\":{\"name\":\"@wipe@\"@meta@}}", NO_JSON),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@"@meta@}}x"#, NO_JSON),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"ping"}{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, NO_JSON),
    whole("{\"jsonrpc\":\"2.0\",\"id\":@id@,\"method\":\"ping\"}\r{\"jsonrpc\":\"2.0\",\"id\":@id@,\"method\":\"tools/call\",\"params\":{\"name\":\"@wipe@\"@meta@}}", NO_JSON),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@",/* */"arguments":{}@meta@}}"#, NO_JSON),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@"@meta@},}"#, NO_JSON),
    whole(r#"{'jsonrpc':'2.0','id':@id@,'method':'tools/call','params':{'name':'@wipe@'@meta@}}"#, NO_JSON),
    whole(r#"{jsonrpc:"2.0",id:@id@,method:"tools/call",params:{name:"@wipe@"@meta@}}"#, NO_JSON),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@","arguments":{"n":NaN}@meta@}}"#, NO_JSON),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@","arguments":{"n":+1}@meta@}}"#, NO_JSON),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@","arguments":{"n":01}@meta@}}"#, NO_JSON),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@\ud800"@meta@}}"#, NO_JSON),
    whole("{\"jsonrpc\":\"2.0\",\"id\":@id@,\"method\":\"tools/call\",\"params\":{\"name\":\"@wipe@\u{1}\"@meta@}}", NO_JSON),
    whole(r#""{\"jsonrpc\":\"2.0\",\"id\":@id@,\"method\":\"tools/call\",\"params\":{\"name\":\"@wipe@\"}}""#, NO_MESSAGE),
    whole("+ADw-", NO_JSON),
    bytes(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"old__w\xc1\xa9pe\"}}", NO_JSON),
    bytes(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"old__wipe\xff\"}}", NO_JSON),
    bytes(b"\xff\xfe{\0\"\0j\0s\0o\0n\0r\0p\0c\0\"\0:\0\"\x002\0.\x000\0\"\0}\0", NO_JSON),
    bytes(b"{\0\"\0i\0d\0\"\0:\x001\0}\0", NO_JSON),
    bytes(b"\x1f\x8b\x08\x00", NO_JSON),
    // The envelope.
    whole(r#"{"id":@id@,"method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":2.0,"id":@id@,"method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.00","id":@id@,"method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2\u002e0","id":@id@,"method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, &["invalid-request", "policy-denied"]),
    whole(r#"{"JSONRPC":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, TWICE),
    whole(r#"{"jsonrpc":"2.0","jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, TWICE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"ping","method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, TWICE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","method":"ping","params":{"name":"@wipe@"@meta@}}"#, TWICE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"ping","m\u0065thod":"tools/call","params":{"name":"@wipe@"@meta@}}"#, TWICE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"ping","Method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, TWICE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"Method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, TWICE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@look@"@meta@},"params":{"name":"@wipe@"@meta@}}"#, TWICE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@look@"@meta@},"p\u0061rams":{"name":"@wipe@"@meta@}}"#, TWICE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@look@"@meta@},"param\u017f":{"name":"@wipe@"@meta@}}"#, TWICE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","Params":{"name":"@wipe@"@meta@}}"#, TWICE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"id":77,"method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, TWICE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":["@wipe@",{}]}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":[{"name":"@wipe@"@meta@}]}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":"{\"name\":\"@wipe@\"}"}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":null}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":null,"method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":[@id@],"method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":true,"method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":["tools/call"],"params":{"name":"@wipe@"@meta@}}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":null,"params":{"name":"@wipe@"@meta@}}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@look@"@meta@},"tool":"@wipe@"}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@look@"@meta@},"arguments":{"path":"/etc"}}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@"@meta@},"result":{}}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@"@meta@},"error":null}"#, NO_MESSAGE),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools\/call","params":{"name":"@wipe@"@meta@}}"#, DENIED),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"m\u0065thod":"t\u006fols/call","p\u0061rams":{"name":"@wipe@"@meta@}}"#, DENIED),
    whole(r#"{"jsonrpc":"2.0","id":"@id@","method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, DENIED),
    whole(r#"{"jsonrpc":"2.0","id":-1.5,"method":"tools/call","params":{"name":"@wipe@"@meta@}}"#, DENIED),
    whole(r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call"}"#, &["invalid-params", "invalid-request", "header-mismatch"]),
    whole(r#"[{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@wipe@"@meta@}}]"#, NO_MESSAGE),
    whole(r#"[]"#, NO_MESSAGE),
    whole(r#"{}"#, NO_MESSAGE),
    // Calls that look as if nobody wanted an answer, and answers that look like calls.
    silent(r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"@wipe@","arguments":{}@meta@}}"#, DENIED),
    silent(r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"@look@","arguments":{"path":"/etc"}@meta@}}"#, DENIED),
    silent(r#"{"jsonrpc":"2.0","method":"prompts/get","params":{"name":"@secret@"@meta@}}"#, DENIED),
    silent(r#"{"jsonrpc":"2.0","method":"resources/read","params":{"uri":"@server@://secret/1"@meta@}}"#, NONE),
    silent(r#"{"jsonrpc":"2.0","method":"Tools/Call","params":{"name":"@wipe@"@meta@}}"#, NO_METHOD),
    silent(r#"{"jsonrpc":"2.0","id":1,"result":{"method":"tools/call","params":{"name":"@wipe@"}}}"#, ENVELOPE),
];

/// Methods that a lenient server takes for known ones.
pub const METHODS: &[Attempt] = &[
    params("Tools/Call", r#""name":"@wipe@""#, SPELLED),
    params("TOOLS/CALL", r#""name":"@wipe@""#, SPELLED),
    params("tools/Call", r#""name":"@wipe@""#, SPELLED),
    params("tools/call/", r#""name":"@wipe@""#, SPELLED),
    params("/tools/call", r#""name":"@wipe@""#, SPELLED),
    params("tools//call", r#""name":"@wipe@""#, SPELLED),
    params(" tools/call", r#""name":"@wipe@""#, SPELLED),
    params("tools/call ", r#""name":"@wipe@""#, SPELLED),
    params(r"tools/call\t", r#""name":"@wipe@""#, SPELLED),
    params(r"tools/call\n", r#""name":"@wipe@""#, SPELLED),
    params(r"tools/call\u0000", r#""name":"@wipe@""#, SPELLED),
    params(r"tools\\call", r#""name":"@wipe@""#, SPELLED),
    params("tools.call", r#""name":"@wipe@""#, SPELLED),
    params("tools_call", r#""name":"@wipe@""#, SPELLED),
    params("toolsCall", r#""name":"@wipe@""#, SPELLED),
    params(r"t\u043eols/call", r#""name":"@wipe@""#, SPELLED),
    params(r"tools/c\uff41ll", r#""name":"@wipe@""#, SPELLED),
    params(r"tools/ca\u200bll", r#""name":"@wipe@""#, SPELLED),
    params("Prompts/Get", r#""name":"@secret@""#, SPELLED),
    params("resources/Read", r#""uri":"@server@://secret/1""#, SPELLED),
    params("Completion/complete", r#""ref":{"type":"ref/prompt","name":"@secret@"}"#, SPELLED),
    params("tasks/Get", r#""taskId":"task-x""#, SPELLED),
];

/// Prompts, completions and resources.
pub const OTHERS: &[Attempt] = &[
    params("prompts/get", r#""name":"@prefix@s\u0065cret""#, DENIED),
    params("prompts/get", r#""n\u0061me":"@secret@""#, DENIED),
    params("prompts/get", r#""name":"@greet@","name":"@secret@""#, TWICE),
    params("prompts/get", r#""name":"@secret@","Name":"@greet@""#, TWICE),
    params("prompts/get", r#""Name":"@secret@""#, TWICE),
    params("prompts/get", r#""name":["@secret@"]"#, SHAPE),
    // A second selector, which a lenient server might take for the one.
    params("prompts/get", r#""name":"@greet@","uri":"@server@://secret/1""#, SHAPE),
    params(
        "prompts/get",
        r#""name":"@greet@","ref":{"type":"ref/prompt","name":"@secret@"}"#,
        SHAPE,
    ),
    params("resources/read", r#""uri":"@server@://open/1","name":"@secret@""#, SHAPE),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@","uri":"@server@://secret/{id}"},"argument":{"name":"a","value":""}"#,
        SHAPE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@","title":"t","arguments":{}},"argument":{"name":"a","value":""}"#,
        SHAPE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/resource","uri":"@server@://open/{id}","name":"@secret@"},"argument":{"name":"id","value":""}"#,
        SHAPE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@"},"name":"@secret@","argument":{"name":"a","value":""}"#,
        SHAPE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@"},"uri":"@server@://secret/1","argument":{"name":"a","value":""}"#,
        SHAPE,
    ),
    params("prompts/get", r#""name":"@prefix@Secret""#, NONE),
    params("prompts/get", r#""name":"@prefix@SECRET""#, NONE),
    params("prompts/get", r#""name":"@secret@ ""#, NONE),
    params("prompts/get", r#""name":"@secret@\u0000""#, NONE),
    params("prompts/get", r#""name":"@prefix@s\u0435cret""#, NONE),
    params("prompts/get", r#""name":"@prefix@sec\u200bret""#, NONE),
    params("prompts/get", r#""name":"@server@__@server@__secret""#, NONE),
    params("prompts/get", r#""name":"@server@/secret""#, NONE),
    params("prompts/get", r#""name":"@greet@","arguments":{"topic":"x"}"#, DENIED),
    params("prompts/get", r#""name":"@greet@","arguments":{"Topic":"x"}"#, DENIED),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@"},"argument":{"name":"TOPIC","value":"x"}"#,
        &["arguments-invalid"],
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@prefix@hidden"},"argument":{"name":"a","value":"x"}"#,
        DENIED,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@prefix@Hidden"},"argument":{"name":"a","value":"x"}"#,
        &["unknown-target"],
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@prefix@s\u0065cret"},"argument":{"name":"a","value":""}"#,
        DENIED,
    ),
    params(
        "completion/complete",
        r#""r\u0065f":{"typ\u0065":"ref\/prompt","n\u0061me":"@secret@"},"argument":{"name":"a","value":""}"#,
        DENIED,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@","name":"@secret@"},"argument":{"name":"a","value":""}"#,
        TWICE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@","Name":"@secret@"},"argument":{"name":"a","value":""}"#,
        TWICE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@"},"ref":{"type":"ref/prompt","name":"@secret@"},"argument":{"name":"a","value":""}"#,
        TWICE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@"},"Ref":{"type":"ref/prompt","name":"@secret@"},"argument":{"name":"a","value":""}"#,
        TWICE,
    ),
    params(
        "completion/complete",
        r#""Ref":{"type":"ref/prompt","name":"@secret@"},"argument":{"name":"a","value":""}"#,
        TWICE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"Ref/Prompt","name":"@secret@"},"argument":{"name":"a","value":""}"#,
        SHAPE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/tool","name":"@secret@"},"argument":{"name":"a","value":""}"#,
        SHAPE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/resource","name":"@secret@"},"argument":{"name":"a","value":""}"#,
        SHAPE,
    ),
    params(
        "completion/complete",
        r#""ref":[{"type":"ref/prompt","name":"@secret@"}],"argument":{"name":"a","value":""}"#,
        SHAPE,
    ),
    params("completion/complete", r#""ref":"@secret@","argument":{"name":"a","value":""}"#, SHAPE),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@prefix@Secret"},"argument":{"name":"a","value":""}"#,
        NONE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@"},"argument":{"name":"a","value":"forbidden"}"#,
        DENIED,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@"},"argument":{"name":"a","v\u0061lue":"\u0066orbidden"}"#,
        DENIED,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@"},"argument":{"name":"a","value":["x"]}"#,
        DENIED,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/prompt","name":"@greet@"},"argument":{"name":"a","value":"x","Value":"forbidden"}"#,
        TWICE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/resource","uri":"@server@://secret/{ID}"},"argument":{"name":"id","value":""}"#,
        NONE,
    ),
    params(
        "completion/complete",
        r#""ref":{"type":"ref/resource","uri":"@server@://secret/1"},"argument":{"name":"id","value":""}"#,
        NONE,
    ),
    params("resources/read", r#""uri":"@server@:\/\/secret\/1""#, NONE),
    params("resources/read", r#""\u0075ri":"@server@://secret/1""#, NONE),
    params("resources/read", r#""uri":"@server@://open/1","uri":"@server@://secret/1""#, TWICE),
    params("resources/read", r#""uri":"@server@://open/1","URI":"@server@://secret/1""#, TWICE),
    params("resources/read", r#""URI":"@server@://secret/1""#, TWICE),
    params("resources/read", r#""uri":["@server@://secret/1"]"#, SHAPE),
    params("resources/read", r#""uri":"@server@://secret/2""#, NONE),
    params("resources/read", r#""uri":"@server@://SECRET/1""#, NONE),
    params("resources/read", r#""uri":"OLD://secret/1""#, NONE),
    params("resources/read", r#""uri":" @server@://secret/1""#, NONE),
    params("resources/read", r#""uri":"@server@://sec\tret/1""#, NONE),
    params("resources/read", r#""uri":"@server@://secret/%31""#, NONE),
    params("resources/read", r#""uri":"@server@://%73ecret/1""#, NONE),
    params("resources/read", r#""uri":"@server@://secret/./1""#, NONE),
    params("resources/read", r#""uri":"@server@://secret/x/../1""#, NONE),
    params("resources/read", r#""uri":"@server@://open@secret/1""#, NONE),
    params("resources/read", r#""uri":"@server@://open:1@secret/1""#, NONE),
    params("resources/read", r#""uri":"@server@://open\\@secret/1""#, NONE),
    params("resources/read", r#""uri":"@server@://secret:/1""#, NONE),
    params("resources/read", r#""uri":"@server@://secret./1""#, NONE),
    params("resources/read", r#""uri":"@server@:secret/1""#, NONE),
    params("resources/read", r#""uri":"@server@:////secret/1""#, NONE),
    params("resources/read", r#""uri":"@server@://secret/{id}""#, NONE),
    params("resources/read", r#""uri":"file:///etc/passwd""#, NONE),
    params("resources/read", r#""uri":"FILE:/etc/passwd""#, NONE),
    params("resources/read", r#""uri":"/etc/passwd""#, NONE),
    params("resources/read", r#""uri":"""#, NONE),
];

/// What legacy revisions have alone.
pub const LEGACY: &[Attempt] = &[
    params("resources/subscribe", r#""uri":"@server@://secret/1""#, NONE),
    params("resources/unsubscribe", r#""uri":"@server@://secret/1""#, NONE),
    params("resources/subscribe", r#""uri":"@server@://s\u0065cret/1""#, NONE),
    params("resources/subscribe", r#""uri":"@server@://secret/%31""#, NONE),
    params(
        "resources/subscribe",
        r#""uri":"@server@://open/1","Uri":"@server@://secret/1""#,
        TWICE,
    ),
    params(
        "subscriptions/listen",
        r#""notifications":{"resourceSubscriptions":["@server@://secret/1"]}"#,
        NO_METHOD,
    ),
    params("tasks/update", r#""taskId":"task-x","inputResponses":{}"#, NO_METHOD),
];

/// What 2026-07-28 has not any more.
pub const MODERN: &[Attempt] = &[
    params("resources/subscribe", r#""uri":"@server@://secret/1""#, NO_METHOD),
    params("tasks/result", r#""taskId":"task-x""#, NO_METHOD),
    params("tasks/list", "\"cursor\":\"\"", NO_METHOD),
    params("ping", r#""name":"@wipe@""#, NO_METHOD),
];

/// Batches of revision 2025-03-26: what may pass passes, and nothing with it.
pub const BATCHES: &[Attempt] = &[
    whole(
        r#"[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@look@","arguments":{"path":"/srv/ok","mark":"control"}}},{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"@wipe@"}}]"#,
        DENIED,
    ),
    whole(
        r#"[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@wipe@"}},{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@look@","arguments":{"path":"/srv/ok","mark":"control"}}}]"#,
        &["policy-denied", "invalid-request"],
    ),
    whole(
        r#"[[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@wipe@"}}]]"#,
        NO_MESSAGE,
    ),
    whole(
        r#"[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@look@","name":"@wipe@","arguments":{"path":"/srv/ok"}}}]"#,
        TWICE,
    ),
    whole(
        r#"[{"jsonrpc":"2.0","id":1,"method":"Tools/Call","params":{"name":"@wipe@"}}]"#,
        NO_METHOD,
    ),
    whole(
        r#"[{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{}}},{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"@wipe@"}}]"#,
        &["policy-denied", "invalid-request"],
    ),
    whole(
        r#"[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@wipe@"}}]x"#,
        NO_JSON,
    ),
    whole(
        r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}][{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@wipe@"}}]"#,
        NO_JSON,
    ),
    whole(
        r#"{"0":{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@wipe@"}}}"#,
        NO_MESSAGE,
    ),
    silent(r#"[{"jsonrpc":"2.0","method":"tools/call","params":{"name":"@wipe@"}}]"#, DENIED),
];
