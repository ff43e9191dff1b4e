//! The table in the format of container engines (seccomp profiles of Docker and Podman).

use serde_json::{Value, json};

use crate::table::{ABSENT, Call, Condition, table};

/// Profile for container engines, for x86-64 and ARM64. The text is the same on every architecture,
/// so that a guard and a proxy on different machines agree.
///
/// A call of another architecture's ABI (32-bit, x32) ends the process: engines do that with every
/// profile that names no sub-architecture.
pub fn container_profile() -> Value {
    let calls = table();
    let mut always: Vec<&str> =
        calls.iter().filter(|call| call.any_of.is_empty()).map(|call| call.name).collect();
    always.sort_unstable();
    let mut rules = vec![json!({ "names": always, "action": "SCMP_ACT_ALLOW" })];
    rules.extend(calls.iter().flat_map(conditional));
    // 38 is ENOSYS.
    rules.push(json!({ "names": ABSENT, "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }));
    json!({
        // 1 is EPERM.
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            { "architecture": "SCMP_ARCH_X86_64", "subArchitectures": [] },
            { "architecture": "SCMP_ARCH_AARCH64", "subArchitectures": [] },
        ],
        "syscalls": rules,
    })
}

/// One rule for each set of conditions: the engine allows the call if one of them holds.
fn conditional(call: &Call) -> impl Iterator<Item = Value> {
    call.any_of.iter().map(|set| {
        let conditions: Vec<Value> = set.iter().map(condition).collect();
        json!({ "names": [call.name], "action": "SCMP_ACT_ALLOW", "args": conditions })
    })
}

fn condition(condition: &Condition) -> Value {
    let Condition { argument, mask, value } = condition;
    json!({ "index": argument, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" })
}
