//! Tests of the choice, among them the comparison with brute force.

use proptest::prelude::*;

use super::*;
use crate::ErrorKind;

const GIB: u64 = 1024;

/// Types named by their size, all allowed.
fn catalogue(sizes: &[(u32, u64)]) -> Catalogue {
    let types: Vec<InstanceType> =
        sizes.iter().map(|(c, g)| InstanceType::new(format!("{c}x{g}"), *c, g * GIB)).collect();
    let allowed = types.iter().map(|t| t.name.clone()).collect();
    Catalogue::new(types, allowed, "default", "INSTANCE_TYPES")
}

fn size(vcpus: u32, memory_mib: u64) -> InstanceSpec {
    InstanceSpec { vcpus, memory_mib, ..InstanceSpec::default() }
}

fn named(name: &str) -> InstanceSpec {
    InstanceSpec { instance_type: Some(name.into()), ..InstanceSpec::default() }
}

#[test]
fn lists_that_a_halving_search_gets_wrong_are_answered_right() {
    for (list, request, expected) in [
        (&[(4, 8), (2, 16)][..], size(4, 8 * GIB), "4x8"),
        (&[(8, 16), (4, 32)], size(8, 16 * GIB), "8x16"),
        (&[(4, 8), (2, 16), (8, 32)], size(4, 8 * GIB), "4x8"),
        (&[(2, 4), (2, 8), (2, 16)], size(2, 5000), "2x8"),
        (&[(4, 4), (2, 8)], size(4, 4 * GIB), "4x4"),
    ] {
        assert_eq!(catalogue(list).choose(&request).unwrap(), expected, "{list:?}");
    }
}

#[test]
fn a_named_type_must_be_allowed_and_the_default_is_no_exception() {
    let mut cat = catalogue(&[(2, 4)]);
    assert_eq!(cat.choose(&named("2x4")).unwrap(), "2x4");
    assert_eq!(cat.choose(&InstanceSpec::default()).unwrap(), "default", "without being in the list");
    let text = cat.choose(&named("default")).unwrap_err().to_string();
    assert_eq!(
        text,
        "instance type is outside the allowed list (requested: default, allowed: 2x4, set: INSTANCE_TYPES)"
    );
    cat.allowed.clear();
    assert_eq!(cat.choose(&named("default")).unwrap(), "default");
    assert!(cat.choose(&named("2x4")).is_err(), "an empty list allows the default only");
}

#[test]
fn a_named_type_beats_sizes_but_never_loses_confidentiality() {
    let mut cat = catalogue(&[(2, 4), (8, 32)]);
    let mut spec = InstanceSpec { instance_type: Some("2x4".into()), ..size(8, 32 * GIB) };
    assert_eq!(cat.choose(&spec).unwrap(), "2x4");
    spec.confidential = Confidential::Yes;
    let text = cat.choose(&spec).unwrap_err().to_string();
    assert!(text.contains("requested: 2x4") && text.contains("it lacks: a confidential type"), "{text}");
    cat.types[0].confidential.push(ConfidentialType::Tdx);
    assert_eq!(cat.choose(&spec).unwrap(), "2x4");
    spec.confidential = Confidential::Type(ConfidentialType::SevSnp);
    assert!(cat.choose(&spec).is_err());
}

#[test]
fn an_empty_list_compares_with_the_default_only() {
    let mut cat = catalogue(&[(2, 4), (4, 8)]);
    cat.allowed.clear();
    cat.default = "2x4".into();
    assert_eq!(cat.choose(&size(2, 4 * GIB)).unwrap(), "2x4");
    assert!(cat.choose(&size(4, 8 * GIB)).is_err());
}

#[test]
fn half_a_size_keeps_a_default_that_will_do() {
    let mut cat = catalogue(&[(1, 2), (4, 8), (8, 16)]);
    cat.default = "4x8".into();
    assert_eq!(cat.choose(&size(2, 0)).unwrap(), "4x8");
    assert_eq!(cat.choose(&size(0, 9 * GIB)).unwrap(), "8x16", "the default is too small");
    assert_eq!(cat.choose(&size(1, GIB)).unwrap(), "1x2", "a whole size is compared with every type");
}

#[test]
fn gpus_are_given_to_those_who_ask() {
    let mut cat = catalogue(&[(16, 64)]);
    cat.types.push(InstanceType::new("gpu", 1, GIB).with_gpus(2, Some("A100".into())));
    cat.types.push(InstanceType::new("gpu-small", 1, GIB).with_gpus(1, Some("T4".into())));
    cat.allowed.extend(["gpu".into(), "gpu-small".into()]);
    assert_eq!(cat.choose(&size(1, 1)).unwrap(), "16x64", "a GPU type is smaller, but nobody asked for GPUs");
    let gpu = |gpus, model: Option<&str>| InstanceSpec {
        gpus,
        gpu_model: model.map(Into::into),
        ..InstanceSpec::default()
    };
    assert_eq!(cat.choose(&gpu(1, None)).unwrap(), "gpu-small");
    assert_eq!(cat.choose(&gpu(1, Some("a100"))).unwrap(), "gpu");
    assert_eq!(cat.choose(&gpu(0, Some("a100"))).unwrap(), "gpu", "a model without a number means one");
    assert!(cat.choose(&gpu(3, None)).unwrap_err().to_string().contains("GPUs 2 of 3"));
}

#[test]
fn the_price_decides_when_it_is_known_for_all_that_fit() {
    let mut cat = catalogue(&[(2, 4), (4, 8), (8, 16)]);
    for (t, price) in cat.types.iter_mut().zip([30, 20, 10]) {
        t.price = Some(price);
    }
    assert_eq!(cat.choose(&size(2, 4 * GIB)).unwrap(), "8x16");
    cat.types[2].price = None;
    assert_eq!(cat.choose(&size(2, 4 * GIB)).unwrap(), "2x4");
}

#[test]
fn no_match_names_the_requirement_and_the_closest_type() {
    let mut cat = catalogue(&[(2, 64), (8, 16)]);
    let text = cat.choose(&size(8, 32 * GIB)).unwrap_err().to_string();
    for part in ["wanted: vCPUs 8, memory 32768 MiB", "closest: 8x16", "it lacks: memory 16384 of 32768 MiB"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("met by no type"), "each requirement is met by some type: {text}");
    let mut spec = size(16, GIB);
    spec.confidential = Confidential::Yes;
    let error = cat.choose(&spec).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Config);
    let text = error.to_string();
    assert!(text.contains("met by no type: confidential type and vCPUs"), "{text}");
    assert!(text.contains("closest: 8x16") && text.contains("vCPUs 8 of 16"), "{text}");
    cat.types.clear();
    let text = cat.choose(&size(1, 1)).unwrap_err().to_string();
    assert!(text.contains("nothing is known about the allowed types"), "{text}");
}

#[test]
fn an_unknown_architecture_rules_nothing_out_and_a_known_one_does() {
    let mut cat = catalogue(&[(2, 4), (4, 8)]);
    let spec = InstanceSpec { architecture: Some(Architecture::Aarch64), ..size(1, 1) };
    assert_eq!(cat.choose(&spec).unwrap(), "2x4");
    cat.types[0].architecture = Some(Architecture::X86_64);
    assert_eq!(cat.choose(&spec).unwrap(), "4x8");
}

fn any_type() -> impl Strategy<Value = InstanceType> {
    let kinds = proptest::sample::subsequence(vec![ConfidentialType::SevSnp, ConfidentialType::Tdx], 0..=2);
    let arch =
        proptest::option::of(proptest::sample::select(vec![Architecture::X86_64, Architecture::Aarch64]));
    let model = proptest::option::of(proptest::sample::select(vec!["T4".to_owned(), "a100".to_owned()]));
    (0..12u8, 1..5u32, 1..5u64, 0..3u32, model, arch, kinds, proptest::option::weighted(0.7, 0..4u64))
        .prop_map(|(n, vcpus, memory_mib, gpus, gpu_model, architecture, confidential, price)| InstanceType {
            name: format!("t{n}"),
            vcpus,
            memory_mib,
            gpus,
            gpu_model: gpu_model.filter(|_| gpus > 0),
            architecture,
            confidential,
            price,
        })
}

fn any_spec() -> impl Strategy<Value = InstanceSpec> {
    let arch =
        proptest::option::of(proptest::sample::select(vec![Architecture::X86_64, Architecture::Aarch64]));
    let model =
        proptest::option::weighted(0.3, proptest::sample::select(vec!["t4".to_owned(), "A100".to_owned()]));
    let confidential = proptest::sample::select(vec![
        Confidential::Default,
        Confidential::No,
        Confidential::Yes,
        Confidential::Type(ConfidentialType::Tdx),
    ]);
    (1..5u32, 1..5u64, 0..3u32, model, arch, confidential).prop_map(
        |(vcpus, memory_mib, gpus, gpu_model, architecture, confidential)| InstanceSpec {
            vcpus,
            memory_mib,
            gpus,
            gpu_model,
            architecture,
            confidential,
            ..InstanceSpec::default()
        },
    )
}

/// The rules once more, written as plainly as possible.
fn will_do(spec: &InstanceSpec, t: &InstanceType) -> bool {
    let gpus = match (spec.gpus, &spec.gpu_model) {
        (0, None) => t.gpus == 0,
        (n, None) => t.gpus >= n,
        (n, Some(model)) => {
            t.gpus >= 1
                && t.gpus >= n
                && t.gpu_model.as_ref().map(|m| m.to_lowercase()) == Some(model.to_lowercase())
        }
    };
    let confidential = match spec.confidential {
        Confidential::Yes => !t.confidential.is_empty(),
        Confidential::Type(kind) => t.confidential.contains(&kind),
        _ => true,
    };
    let architecture =
        spec.architecture.is_none() || t.architecture.is_none() || spec.architecture == t.architecture;
    gpus && confidential && architecture && t.vcpus >= spec.vcpus && t.memory_mib >= spec.memory_mib
}

/// Returns every type that fits and that no other fitting type beats.
fn brute_force(spec: &InstanceSpec, types: &[InstanceType], allowed: &[String]) -> Option<String> {
    let fitting: Vec<&InstanceType> =
        types.iter().filter(|t| allowed.contains(&t.name) && will_do(spec, t)).collect();
    let by_price = fitting.iter().all(|t| t.price.is_some());
    let key = |t: &InstanceType| {
        let price = if by_price { t.price.unwrap() } else { 0 };
        (price, t.gpus, t.memory_mib, t.vcpus, t.name.clone())
    };
    let beats = |a: &InstanceType, b: &InstanceType| key(a) < key(b);
    let best: Vec<&&InstanceType> =
        fitting.iter().filter(|t| !fitting.iter().any(|other| beats(other, t))).collect();
    best.first().map(|t| t.name.clone())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_choice_equals_brute_force(
        types in proptest::collection::vec(any_type(), 0..12),
        skip in 0..4usize,
        spec in any_spec(),
    ) {
        let allowed: Vec<String> = types.iter().skip(skip).map(|t| t.name.clone()).chain(["other".into()]).collect();
        let expected = brute_force(&spec, &types, &allowed);
        let cat = Catalogue::new(types.clone(), allowed, "default", "X");
        let chosen = cat.choose(&spec);
        prop_assert_eq!(chosen.clone().ok(), expected);
        if let Err(error) = chosen {
            let pool = types.iter().any(|t| cat.is_allowed(&t.name));
            let part = if pool { "it lacks" } else { "nothing is known" };
            prop_assert!(error.to_string().contains(part), "{}", error);
        }
        let mut reversed = cat.clone();
        reversed.types.reverse();
        prop_assert_eq!(reversed.choose(&spec).ok(), cat.choose(&spec).ok(), "the order of the list is of no account");
    }
}
