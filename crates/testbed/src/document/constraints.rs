//! `network_constraints`.

use crate::{Constraint, NetworkConstraints, Shape};

use super::{
    draft::Told,
    keys, range,
    reader::{Fields, Reader},
    tree::Node,
};

/// Reads the constraints; `named` gets every group and role that they name.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node, named: &mut Vec<Told>) -> NetworkConstraints {
    let fields = reader.fields(node, "network_constraints", keys::CONSTRAINTS);
    let mut constraints = NetworkConstraints {
        enable: fields.get("enable").and_then(|n| reader.bool(n, "enable")).unwrap_or(true),
        default: shape(reader, &fields, ["default_delay", "default_rate", "default_loss"]),
        ..NetworkConstraints::default()
    };
    if let Some(node) = fields.get("except") {
        for item in reader.items(node) {
            constraints.except.extend(ranged(reader, item, named));
        }
    }
    if let Some(node) = fields.get("constraints") {
        for item in reader.items(node) {
            pair(reader, item, &mut constraints.constraints, named);
        }
    }
    constraints
}

fn pair(reader: &mut Reader<'_>, node: &Node, all: &mut Vec<Constraint>, named: &mut Vec<Told>) {
    let fields = reader.fields(node, "a constraint", keys::PAIR);
    let shape = shape(reader, &fields, ["delay", "rate", "loss"]);
    // Only the value counts: `symetric: false` does not mirror.
    let symmetric = fields.get("symmetric").and_then(|n| reader.bool(n, "symmetric")).unwrap_or(false);
    let mut ends = [Vec::new(), Vec::new()];
    for (key, names) in ["src", "dst"].into_iter().zip(&mut ends) {
        match fields.get(key) {
            Some(node) => *names = ranged(reader, node, named),
            None if fields.lacks(key) => {
                reader.problem(node.spot, format!("the constraint has no `{key}`"));
            }
            None => {}
        }
    }
    if ["delay", "rate", "loss"].iter().all(|key| fields.lacks(key)) {
        reader.problem(node.spot, "the constraint has none of `delay`, `rate`, `loss`");
    }
    let [sources, targets] = ends;
    for src in &sources {
        for dst in targets.iter().filter(|dst| *dst != src) {
            let mut constraint = Constraint::new(src, dst, shape);
            constraint.symmetric = symmetric;
            all.push(constraint);
        }
    }
}

fn ranged(reader: &mut Reader<'_>, node: &Node, named: &mut Vec<Told>) -> Vec<String> {
    let Some(text) = reader.word(node, "a group or role") else { return Vec::new() };
    match range::expand(&text) {
        Ok(names) => {
            named.extend(names.iter().map(|name| (name.clone(), node.spot)));
            names
        }
        Err(message) => {
            reader.problem(node.spot, message);
            Vec::new()
        }
    }
}

fn shape(reader: &mut Reader<'_>, fields: &Fields<'_>, [delay, rate, loss]: [&str; 3]) -> Shape {
    fn value<T>(
        reader: &mut Reader<'_>,
        fields: &Fields<'_>,
        key: &str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let node = fields.get(key)?;
        let text = reader.text(node, key)?;
        parse(&text).map_err(|message| reader.problem(node.spot, message)).ok()
    }
    Shape {
        delay_us: value(reader, fields, delay, Shape::parse_delay),
        rate_bps: value(reader, fields, rate, Shape::parse_rate),
        loss_percent: value(reader, fields, loss, Shape::parse_loss),
    }
}
