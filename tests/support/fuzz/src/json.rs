//! A mutator of JSON.

use serde_json::{Map, Value, json};

use crate::Dice;

/// Changes one place of a document; `None` when the bytes are no JSON.
pub fn document(dice: &mut Dice, input: &[u8]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(input).ok()?;
    let count = places(&value);
    let target = dice.below(count);
    let mut extra = None;
    visit(&mut value, &mut 0, target, &mut |place| extra = change(dice, place));
    let text = serde_json::to_string(&value).ok()?;
    // What no value can hold is written in place of a mark.
    Some(match extra {
        Some(raw) => text.replace(&format!("\"{MARK}\""), &raw).into_bytes(),
        None => text.into_bytes(),
    })
}

const MARK: &str = "__raw__";

fn places(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(places).sum(),
        Value::Object(map) => map.values().map(places).sum(),
        _ => 0,
    }
}

/// Calls `with` on the place of a number, counted from the outermost.
fn visit(value: &mut Value, at: &mut usize, target: usize, with: &mut dyn FnMut(&mut Value)) {
    let here = *at;
    *at += 1;
    if here == target {
        return with(value);
    }
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| visit(item, at, target, with)),
        Value::Object(map) => map.values_mut().for_each(|item| visit(item, at, target, with)),
        _ => {}
    }
}

fn change(dice: &mut Dice, place: &mut Value) -> Option<String> {
    let raw = |place: &mut Value, text: String| {
        *place = MARK.into();
        Some(text)
    };
    match dice.below(12) {
        0 => *place = Value::Null,
        1 => *place = json!(""),
        2 => {
            *place = dice
                .one(&[json!(0), json!(-1), json!(u64::MAX), json!(i64::MIN), json!(1.5), json!(true)])
                .clone()
        }
        3 => *place = dice.one(&[json!([]), json!({}), json!([null]), json!({"": null})]).clone(),
        4 => *place = json!([place.clone()]),
        5 => *place = json!({ "x": place.clone() }),
        6 => match place {
            Value::Object(map) => remove(dice, map),
            Value::Array(items) if !items.is_empty() => _ = items.remove(dice.below(items.len())),
            Value::String(text) => _ = text.pop(),
            _ => *place = json!("x"),
        },
        7 => match place {
            Value::Array(items) if !items.is_empty() => items.push(items[dice.below(items.len())].clone()),
            Value::String(text) => {
                let piece = dice.one(&["ä", "\u{2028}", "\n", "\0", "/0", ",", " "]);
                text.push_str(piece);
            }
            Value::Number(number) => *place = json!(number.to_string()),
            _ => *place = json!(false),
        },
        8 => {
            let depth = 1 << dice.below(13);
            return raw(place, "[".repeat(depth) + &"]".repeat(depth));
        }
        9 => {
            return raw(
                place,
                dice.one(&["1e400", "-0", "18446744073709551616", "1E-400", "0.1e1"]).to_string(),
            );
        }
        10 => {
            // A key that stands twice.
            let Value::Object(map) = &*place else { return None };
            let (key, value) = map.iter().next()?;
            let key = Value::from(key.as_str());
            return raw(place, format!("{{{key}:{value},{key}:null,{key}:{value}}}"));
        }
        _ => {
            let text = dice.one(&["\"\\ud800\"", "\"\\u0000\"", "nul", "\"", "{\"a\":", "01", "+1", "[1,]"]);
            return raw(place, (*text).to_owned());
        }
    }
    None
}

fn remove(dice: &mut Dice, map: &mut Map<String, Value>) {
    let keys: Vec<String> = map.keys().cloned().collect();
    if !keys.is_empty() {
        map.remove(dice.one(&keys));
    }
}
