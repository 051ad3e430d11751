//! Which machine sends to which with what shape.

use std::collections::BTreeMap;

use cloud_providers::{Error, ErrorKind, Result};

use crate::{Environment, Host, NetworkConstraints, Shape, near::hint};

/// What one machine sends to another.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Pair<'a> {
    /// The machine that sends.
    pub src: &'a Host,
    /// The machine that receives.
    pub dst: &'a Host,
    /// What is to hold.
    pub shape: Shape,
}

/// Returns all ordered pairs between which something is to hold.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] when a constraint names what no machine is: a slip would silently shape nothing.
pub fn pairs<'a>(environment: &'a Environment, wanted: &NetworkConstraints) -> Result<Vec<Pair<'a>>> {
    let hosts = &environment.obtained.hosts;
    let names = wanted.constraints.iter().flat_map(|c| [&c.src, &c.dst]).chain(&wanted.except);
    let machines = || environment.reservations.iter().flat_map(|r| &r.machines);
    for name in names {
        // A group may be empty today because its machines were not to be had.
        let known = hosts.iter().any(|host| is(host, name))
            || machines().any(|m| m.name == *name || m.roles.contains(name))
            || environment
                .reservations
                .iter()
                .any(|r| r.groups.iter().any(|g| g.topology.as_ref() == Some(name)));
        if !known {
            let all = hosts.iter().flat_map(|host| host.roles.iter().chain([&host.alias]));
            let near = hint(name, all.map(String::as_str));
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("a constraint names {name:?}, which is no role, group or machine{near}"),
            ));
        }
    }
    let topology = topology(environment);
    let mut pairs = Vec::new();
    for src in hosts {
        for dst in hosts.iter().filter(|dst| dst.alias != src.alias) {
            let group = |host: &Host| topology.get(host.alias.as_str()).copied();
            let apart = group(src).is_none() || group(src) != group(dst);
            let left_alone = wanted.except.iter().any(|name| is(src, name) || is(dst, name));
            let mut shape = if apart && !left_alone { wanted.default } else { Shape::default() };
            for c in &wanted.constraints {
                let there = is(src, &c.src) && is(dst, &c.dst);
                let back = c.symmetric && is(src, &c.dst) && is(dst, &c.src);
                if there || back {
                    shape = shape.overridden(c.shape);
                }
            }
            if !shape.is_empty() {
                pairs.push(Pair { src, dst, shape });
            }
        }
    }
    Ok(pairs)
}

fn is(host: &Host, name: &str) -> bool {
    host.alias == name || host.roles.contains(name)
}

/// Returns the group of the topology of each machine that is in one.
fn topology(environment: &Environment) -> BTreeMap<&str, &str> {
    let mut groups = BTreeMap::new();
    for reservation in &environment.reservations {
        for machine in &reservation.machines {
            let group = reservation.groups.get(machine.group).and_then(|g| g.topology.as_deref());
            if let Some(group) = group {
                groups.insert(machine.name.as_str(), group);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Constraint, Group, Machine, ProviderConfig, Reservation};

    fn environment() -> Environment {
        let mut reservation = Reservation::new("x", ProviderConfig::new("rack"));
        let mut hosts = Vec::new();
        for (index, (name, group)) in
            [("a0", "grp1"), ("a1", "grp1"), ("b0", "grp2"), ("c0", "grp3")].iter().enumerate()
        {
            let mut of = Group::new(*name, 1);
            of.topology = Some((*group).into());
            reservation.groups.push(of);
            reservation.machines.push(Machine::new(*name, index, [*group]));
            let mut host = Host::new(*name, "10.0.0.1", *name);
            host.roles.insert((*group).into());
            hosts.push(host);
        }
        let mut environment = Environment::new(vec![reservation]);
        environment.obtained.hosts = hosts;
        environment
    }

    fn delay(us: u64) -> Shape {
        Shape { delay_us: Some(us), ..Shape::default() }
    }

    fn told(wanted: &NetworkConstraints) -> Vec<String> {
        let environment = environment();
        let pairs = pairs(&environment, wanted).unwrap();
        pairs
            .iter()
            .map(|p| format!("{}>{} {}", p.src.alias, p.dst.alias, p.shape.delay_us.unwrap_or(0)))
            .collect()
    }

    #[test]
    fn the_default_holds_between_groups_and_not_within_one_or_for_those_excepted() {
        let wanted = NetworkConstraints {
            enable: true,
            default: delay(5),
            except: vec!["grp3".into()],
            ..NetworkConstraints::default()
        };
        assert_eq!(told(&wanted), ["a0>b0 5", "a1>b0 5", "b0>a0 5", "b0>a1 5"]);
    }

    #[test]
    fn a_constraint_mirrors_only_where_it_is_symmetric() {
        for (symmetric, expected) in [(true, vec!["b0>c0 7", "c0>b0 7"]), (false, vec!["b0>c0 7"])] {
            let mut constraint = Constraint::new("grp2", "grp3", delay(7));
            constraint.symmetric = symmetric;
            let wanted =
                NetworkConstraints { constraints: vec![constraint], ..NetworkConstraints::default() };
            assert_eq!(told(&wanted), expected);
        }
    }

    #[test]
    fn an_explicit_value_takes_the_place_of_the_default_and_leaves_the_others() {
        let default = Shape { rate_bps: Some(1000), ..delay(5) };
        let wanted = NetworkConstraints {
            default,
            constraints: vec![Constraint::new("a0", "b0", delay(9))],
            ..NetworkConstraints::default()
        };
        let environment = environment();
        let pairs = pairs(&environment, &wanted).unwrap();
        let pair = pairs.iter().find(|p| p.src.alias == "b0" && p.dst.alias == "a0").unwrap();
        assert_eq!(pair.shape, Shape { rate_bps: Some(1000), ..delay(9) });
    }

    #[test]
    fn a_name_that_nobody_has_is_told() {
        let wanted = NetworkConstraints {
            constraints: vec![Constraint::new("grp1", "gpr2", delay(1))],
            ..NetworkConstraints::default()
        };
        let error = pairs(&environment(), &wanted).unwrap_err().to_string();
        assert!(error.contains("gpr2") && error.contains("did you mean \"grp2\""), "{error}");
    }
}
