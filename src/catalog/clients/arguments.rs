//! Arguments of the programs of clients' files.

use crate::{
    interpolation::{Content, content},
    object::Said,
    report::{Report, brief},
};

/// Arguments are never substituted. References that neither a shell nor a program knows are a
/// problem; `$NAME` and `%NAME%` may be for the program itself.
pub(super) fn written_out(arguments: &[Said<'_>], report: &mut Report) {
    for said in arguments {
        if said.text.contains("${") || said.text.contains("{env:") || said.text.contains("{file:") {
            report.problem(
                said.place,
                "something is to be put into this argument: write it out; a secret has no place in arguments",
            );
        } else if content(said.text) != Content::Literal {
            let text = brief(said.text);
            report.fact(
                said.place,
                format!("`{text}` is passed on as it is: nothing is put in for variables"),
            );
        }
    }
}
