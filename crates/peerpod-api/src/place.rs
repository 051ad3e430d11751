//! Where in a file something is wrong, without what stands there.

/// Returns ` at line 3 column 7` of a message of a YAML reader, or nothing.
///
/// Readers quote the line that they cannot read, and a file of credentials has tokens in its lines.
///
/// ```
/// let told = "error: line 3 column 7: expected a string\n3 | token: [abc]\n";
/// assert_eq!(peerpod_api::place_in(told), " at line 3 column 7");
/// assert_eq!(peerpod_api::place_in("no idea"), "");
/// ```
pub fn place_in(message: &str) -> String {
    let Some((_, rest)) = message.split_once("line ") else { return String::new() };
    let mut words = rest.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let number = |word: Option<&str>| word.and_then(|word| word.parse::<u32>().ok());
    match (number(words.next()), words.next(), number(words.next())) {
        (Some(line), Some("column"), Some(column)) => format!(" at line {line} column {column}"),
        (Some(line), ..) => format!(" at line {line}"),
        _ => String::new(),
    }
}
