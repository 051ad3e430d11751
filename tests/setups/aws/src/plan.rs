//! What a set-up will make, and what that costs.

/// Returns what a live run makes, one line each, with the class of its cost.
///
/// Prices differ between regions and change; the class says what is worth looking up.
pub fn plan(worker: bool, pods: u32, instance_type: &str) -> Vec<String> {
    let mut lines = vec![
        "1 VPC, 1 internet gateway, 1 route table, 1 security group, up to 2 subnets: free".to_owned(),
        "1 snapshot of the image, as large as its blocks that are not zero: storage, cents a month"
            .to_owned(),
        "1 image (AMI): free beyond its snapshot".to_owned(),
    ];
    if worker {
        lines.push("1 worker t3.medium with a public address: billed by the second".to_owned());
    }
    if pods > 0 {
        lines.push(format!(
            "{pods} instances {instance_type} with public addresses, for minutes: billed by the second"
        ));
    }
    lines
        .push("everything is deleted at the end, also after a failure, and looked for afterwards".to_owned());
    lines
}
