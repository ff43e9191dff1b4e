//! How the names of arguments are spelled.
//!
//! INVARIANT: an argument that a server may take for one of those it says it has is one that the
//! policies saw by that name. They compare names to the letter, and servers may be less strict.

mod patterns;
mod schema_names;

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use serde_json::{Map, Value};

use self::schema_names::{NameError, PARTS, SchemaNames};
use portcullis_chain::{Fault, Interceptor, Verdict};
use portcullis_protocol::{
    codec::fold,
    exchange::{Exchange, Method, Phase, Target},
    refusal::{Code, Refusal},
};

/// Refuses arguments that have a name of the tool's or the prompt's in another case: a policy that
/// forbids its values would not see it, and a server that reads names without case would. It stands
/// behind the policies in every chain.
pub struct ArgumentNames;

#[async_trait]
impl Interceptor for ArgumentNames {
    fn name(&self) -> &str {
        "argument-names"
    }

    fn wants(&self, _: &Method, phase: Phase) -> bool {
        phase == Phase::Request
    }

    async fn inspect(&self, exchange: &Exchange, _: Phase) -> Result<Verdict, Fault> {
        Ok(match check(exchange) {
            Ok(()) => Verdict::pass(),
            Err(refusal) => Verdict::refuse(refusal),
        })
    }
}

fn check(exchange: &Exchange) -> Result<(), Refusal> {
    let (what, found) = match &exchange.target {
        Target::Tool { tool: Some(tool), .. } => {
            let schema = tool.definition.value().get("inputSchema");
            let (Some(schema), Some(arguments)) = (schema, exchange.arguments()) else {
                return Ok(());
            };
            ("tool", SchemaNames::of(schema).hold(arguments))
        }
        Target::Prompt { prompt: Some(prompt), .. } => {
            let listed = prompt.definition.value().get("arguments");
            ("prompt", listed_names(listed, exchange.request.value()))
        }
        _ => return Ok(()),
    };
    found.map_err(|wrong| match wrong {
        NameError::Spelled(name) => {
            let words = format!(
                "the arguments have a name that differs from one of the {what}'s only in case"
            );
            Refusal::new(Code::ArgumentsInvalid, words)
                .detail(format!("the {what}'s name for it is {name:?}"))
        }
        NameError::TooLarge => {
            let words = "the tool's schema is too large to check the names of these arguments";
            Refusal::new(Code::ArgumentsInvalid, words)
                .detail(format!("the arguments match more than {PARTS} parts of the schema"))
        }
        NameError::Unreadable(pattern) => {
            let words = format!("the {what}'s schema has a pattern of names that cannot be read");
            Refusal::new(Code::ArgumentsInvalid, words).detail(format!("it is {pattern:?}"))
        }
    })
}

/// Holds the names that a message has for a prompt's arguments to those that its server lists.
fn listed_names<'s>(listed: Option<&'s Value>, params: &Value) -> Result<(), NameError<'s>> {
    let listed = listed.and_then(Value::as_array).into_iter().flatten();
    let listed = listed.filter_map(|argument| argument.get("name")?.as_str());
    let folded: HashMap<_, _> = listed.clone().map(|name| (fold(name.into()), name)).collect();
    let listed: HashSet<_> = listed.collect();
    // `prompts/get` has them all, `completion/complete` one, and those that were completed before.
    let several = ["/arguments", "/context/arguments"];
    let several = several.iter().filter_map(|place| params.pointer(place)?.as_object());
    let names = several.flat_map(Map::keys).map(String::as_str);
    let one = params.pointer("/argument/name").and_then(Value::as_str);
    for name in names.chain(one).filter(|name| !listed.contains(name)) {
        if let Some(declared) = folded.get(&fold(name.into())) {
            return Err(NameError::Spelled(declared));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
