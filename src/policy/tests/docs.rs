//! The examples of the docs.

use super::*;

#[test]
fn the_examples_of_the_docs_hold() {
    let docs = include_str!("../../../docs/concepts/policies.md");
    let examples: Vec<_> =
        docs.split("```cedar\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let engine = engine(&examples.concat());
    assert_eq!(engine.status().borrow().policies, 3);
    for action in Action::ALL {
        assert!(docs.contains(&format!("| `{}` |", action.as_str())), "{action:?}");
    }
}
