//! The table as programs of the kernel's seccomp filter, for the sandbox's launcher.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp as Op,
    SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::table::{Call, Condition, TERMINAL_REQUESTS, table};

/// The two filters of the sandbox, to load in this order.
///
/// The first allows what the table allows, with its conditions, and answers `EPERM` to all other
/// calls. The second considers only the call and answers `ENOSYS` to calls that are not in the
/// table, as a kernel without them does; programs handle that. If both refuse, the kernel uses the
/// answer of the filter that was loaded last (seccomp(2), "Return value").
///
/// # Errors
/// If seccompiler does not support the architecture.
pub fn sandbox_filters() -> Result<[BpfProgram; 2], BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    let compile = |rules: BTreeMap<i64, Vec<SeccompRule>>, otherwise: i32| {
        let refuse = SeccompAction::Errno(otherwise.unsigned_abs());
        SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?.try_into()
    };
    let mut with_conditions = BTreeMap::new();
    for call in table() {
        let Some(number) = call.number else { continue };
        with_conditions.insert(number, rules(&call)?);
    }
    let by_call = with_conditions.keys().map(|number| (*number, Vec::new())).collect();
    Ok([compile(with_conditions, libc::EPERM)?, compile(by_call, libc::ENOSYS)?])
}

fn rules(call: &Call) -> Result<Vec<SeccompRule>, BackendError> {
    if call.number == Some(libc::SYS_ioctl) {
        let other = |request| SeccompCondition::new(1, Dword, Op::Ne, u64::from(request));
        let others = TERMINAL_REQUESTS.map(other).into_iter().collect::<Result<_, _>>()?;
        return Ok(vec![SeccompRule::new(others)?]);
    }
    let set = |set: &Vec<Condition>| {
        let conditions = set.iter().map(condition).collect::<Result<_, _>>()?;
        SeccompRule::new(conditions)
    };
    call.any_of.iter().map(set).collect()
}

fn condition(condition: &Condition) -> Result<SeccompCondition, BackendError> {
    let Condition { argument, mask, value } = *condition;
    SeccompCondition::new(argument, Dword, Op::MaskedEq(u64::from(mask)), u64::from(value))
}

#[cfg(test)]
mod tests;
