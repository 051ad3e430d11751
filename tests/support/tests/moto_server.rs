//! The emulator of EC2 comes up by itself, is the pinned one, and goes with its value.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use test_support::{Moto, install_moto, moto_cache, wait_for};

fn post(address: SocketAddr, form: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let auth =
        "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0";
    write!(
        stream,
        "POST / HTTP/1.0\r\nHost: {address}\r\nAuthorization: {auth}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_emulator_knows_its_images_and_ends_with_its_value() {
    let first = Moto::start().unwrap();
    let second = Moto::start().unwrap();
    assert_ne!(first.address(), second.address());
    let images = post(first.address(), "Action=DescribeImages&Version=2016-11-15");
    for id in [Moto::IMAGE, Moto::BIOS_IMAGE, Moto::ARM_IMAGE] {
        assert!(images.contains(id), "{id} is not in {images}");
    }
    assert_eq!(images.matches("<imageId>").count(), 3, "{images}");
    let address = first.address();
    drop(first);
    wait_for("the end of the server", Duration::from_secs(10), || {
        TcpStream::connect(address).is_err().then_some(())
    })
    .unwrap();
}

#[test]
fn a_list_is_filtered_by_tags_and_shows_them() {
    let moto = Moto::start().unwrap();
    let ask = |form: &str| post(moto.address(), &format!("Version=2016-11-15&{form}"));
    for name in ["one", "two"] {
        let made = ask(&format!(
            "Action=RunInstances&ImageId={}&MinCount=1&MaxCount=1&TagSpecification.1.ResourceType=instance\
             &TagSpecification.1.Tag.1.Key=name&TagSpecification.1.Tag.1.Value={name}",
            Moto::IMAGE
        ));
        assert!(made.contains("<instanceId>"), "{made}");
    }
    let found = ask("Action=DescribeInstances&Filter.1.Name=tag:name&Filter.1.Value.1=two");
    assert_eq!(found.matches("<instanceId>").count(), 1, "{found}");
    assert!(found.contains("<value>two</value>") && !found.contains("<value>one</value>"), "{found}");
    let tags = ask("Action=DescribeTags&Filter.1.Name=key&Filter.1.Value.1=name");
    assert_eq!(tags.matches("<resourceType>instance</resourceType>").count(), 2, "{tags}");
}

#[test]
fn the_environment_is_made_once() {
    let cache = moto_cache().unwrap();
    let folder = install_moto(&cache).unwrap();
    let made = folder.join("complete").metadata().unwrap().modified().unwrap();
    assert_eq!(install_moto(&cache).unwrap(), folder);
    assert_eq!(folder.join("complete").metadata().unwrap().modified().unwrap(), made);
}
