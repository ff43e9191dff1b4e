//! Packing an executable of the host into an image.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use bollard::query_parameters::RemoveImageOptionsBuilder;

use crate::support::{api, bash, engine, run, spec};

#[tokio::test]
async fn packed_program_runs_with_its_arguments() {
    let engine = engine().await;
    let ran =
        run(&engine, &spec(bash(&engine).await, &["-c", "echo \"$0:$1\"", "a b", "-c"])).await;
    assert_eq!((ran.stdout.as_str(), ran.exit.code), ("a b:-c\n", 0), "{}", ran.stderr);
}

#[tokio::test]
async fn static_program_is_packed() {
    let engine = engine().await;
    let image = engine.pack(Path::new("/sbin/ldconfig")).await.unwrap();
    let ran = run(&engine, &spec(image, &["--version"])).await;
    assert!(ran.stdout.contains("ldconfig"), "{} {}", ran.stdout, ran.stderr);
}

#[tokio::test]
async fn image_is_built_once_per_content() {
    let (engine, api) = (engine().await, api().await);
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("packed-once");
    fs::copy("/bin/cat", &program).unwrap();
    let first = engine.pack(&program).await.unwrap();
    assert!(first.starts_with("sha256:") && first.len() == 71, "{first}");

    let times = || async {
        let image = api.inspect_image(&first).await.unwrap();
        assert_eq!(image.config.unwrap().user.as_deref(), Some("65534:65534"));
        image.metadata.unwrap().last_tag_time
    };
    let loaded = times().await;
    assert_eq!(engine.pack(&program).await.unwrap(), first);
    // Another process, or this one after a restart, knows it by its content.
    let other = crate::support::engine().await;
    assert_eq!(other.pack(&program).await.unwrap(), first);
    assert_eq!(times().await, loaded, "it was loaded again");

    // Other content under the same name is another image; a file that is the same again is not.
    fs::copy("/bin/echo", &program).unwrap();
    let second = engine.pack(&program).await.unwrap();
    assert_ne!(first, second);
    let ran = run(&engine, &spec(second.clone(), &["other"])).await;
    assert_eq!(ran.stdout, "other\n");
    fs::copy("/bin/cat", &program).unwrap();
    assert_eq!(engine.pack(&program).await.unwrap(), first);

    // Removed behind our back: made again, the same.
    for image in [&first, &second] {
        let force = RemoveImageOptionsBuilder::new().force(true).build();
        api.remove_image(image, Some(force), None).await.unwrap();
    }
    assert_eq!(engine.pack(&program).await.unwrap(), first);
    let force = RemoveImageOptionsBuilder::new().force(true).build();
    api.remove_image(&first, Some(force), None).await.unwrap();
}

#[tokio::test]
async fn forged_label_or_name_is_not_trusted() {
    let (engine, api) = (engine().await, api().await);
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("impersonated");
    fs::copy("/bin/cat", &program).unwrap();
    let real = engine.pack(&program).await.unwrap();
    let name = api.inspect_image(&real).await.unwrap().repo_tags.unwrap().remove(0);
    let (repo, tag) = name.rsplit_once(':').unwrap();

    // Somebody gives the name to an image with another program.
    let other = bash(&engine).await;
    let options =
        bollard::query_parameters::TagImageOptionsBuilder::new().repo(repo).tag(tag).build();
    api.tag_image(&other, Some(options)).await.unwrap();
    assert_eq!(engine.pack(&program).await.unwrap(), real);
    let force = RemoveImageOptionsBuilder::new().force(true).build();
    api.remove_image(&real, Some(force), None).await.unwrap();
}

#[tokio::test]
async fn scripts_and_missing_programs_are_refused_with_a_reason() {
    let engine = engine().await;
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    for (program, why) in [
        (script.as_path(), "it is a script"),
        (Path::new("/no/such/program"), "No such file"),
        (folder.path(), "it is not a file"),
        (Path::new("/dev/null"), "it is not a file"),
    ] {
        let refused = engine.pack(program).await.unwrap_err();
        assert!(refused.what.contains(why), "{}", refused.what);
        assert!(refused.remedy.is_some());
    }
}
