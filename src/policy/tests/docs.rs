//! The examples of the docs.

use super::*;

#[test]
fn documented_examples_are_valid() {
    let docs = include_str!("../../../docs/concepts/policies.md");
    let examples: Vec<_> =
        docs.split("```cedar\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let engine = engine(&examples.concat());
    assert_eq!(engine.status().borrow().policies, 4);
    for action in Action::ALL {
        assert!(docs.contains(&format!("| `{}` |", action.as_str())), "{action:?}");
    }
}
