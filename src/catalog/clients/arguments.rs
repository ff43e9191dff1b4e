//! Arguments of the programs of clients' files.

use crate::{
    interpolation::{Content, content},
    object::LocatedText,
    report::{Report, brief},
};

/// Arguments are never substituted. References that neither a shell nor a program knows are a
/// problem; `$NAME` and `%NAME%` may be for the program itself.
pub(super) fn written_out(arguments: &[LocatedText<'_>], report: &mut Report) {
    for located in arguments {
        if located.text.contains("${")
            || located.text.contains("{env:")
            || located.text.contains("{file:")
        {
            report.problem(
                located.place,
                "something is to be put into this argument: write it out; a secret has no place in arguments",
            );
        } else if content(located.text) != Content::Literal {
            let text = brief(located.text);
            report.fact(
                located.place,
                format!("`{text}` is passed on as it is: nothing is put in for variables"),
            );
        }
    }
}
