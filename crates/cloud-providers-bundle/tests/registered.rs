//! What a program sees that names nothing but the bundle.

use cloud_providers::{MapEnv, lookup, registered};
use cloud_providers_bundle::{COMPILED_IN, check};

/// The test double of the contract: another package's tests may switch it on in the same build.
const DOUBLE: &str = "scripted";

#[test]
fn exactly_the_providers_of_this_build_are_registered() {
    check().unwrap();
    let names: Vec<&str> = registered().iter().map(|r| r.name).filter(|n| *n != DOUBLE).collect();
    assert_eq!(names, COMPILED_IN);
    assert_eq!(names.contains(&"aws"), cfg!(feature = "aws"));
    assert_eq!(names.contains(&"libvirt"), cfg!(feature = "libvirt"));
    assert_eq!(names.contains(&"local"), cfg!(feature = "local"));
}

#[test]
fn every_provider_is_found_by_name_and_made_twice_without_sharing() {
    for name in COMPILED_IN {
        let registration = lookup(name).unwrap();
        assert_eq!(registration.version.split('.').count(), 3, "{name}");
        assert!(!registration.summary.is_empty(), "{name}");
        let (mut one, mut two) = ((registration.new)(), (registration.new)());
        let before = format!("{:?}", two.settings());
        let variables = registration.options.iter().filter_map(|o| Some((o.env?, "1")));
        one.load_env(&MapEnv::new(variables)).unwrap();
        assert_ne!(format!("{:?}", one.settings()), before, "{name} reads its variables");
        assert_eq!(format!("{:?}", two.settings()), before, "{name} shares nothing between two values");
    }
}

#[test]
fn options_are_unique_named_and_explained() {
    for name in COMPILED_IN {
        let options = lookup(name).unwrap().options;
        for (i, option) in options.iter().enumerate() {
            assert!(!option.help.is_empty() && !option.help.ends_with('.'), "{name} -{}", option.flag);
            let same = |o: &&cloud_providers::OptionSpec| {
                o.flag == option.flag || (o.env.is_some() && o.env == option.env)
            };
            assert!(options[..i].iter().all(|o| !same(&o)), "{name} -{} stands twice", option.flag);
        }
        // Declared defaults parse: a program that is given nothing sees no problem but what is required.
        let mut cloud = (lookup(name).unwrap().new)();
        let (_, problems) = cloud.settings().parse_all();
        assert!(problems.iter().all(|p| p.contains("is required")), "{name}: {problems:?}");
    }
}
