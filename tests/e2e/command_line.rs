//! Help, version, usage errors, completions, manual pages.

use rig::User;

use crate::session::Session;

#[test]
fn usage_errors_exit_with_2_and_help_with_0() {
    let session = Session::new(User::Ordinary, "usage");
    assert!(session.fails(["man", "/proc/no/such/folder"]).contains("writing manual pages to /proc/no/such/folder"));
    for words in [&["nonsense"][..], &["doctor", "--nonsense"], &[]] {
        let output = session.output(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(output.stdout.is_empty(), "{words:?}");
        assert!(!output.stderr.is_empty(), "{words:?}");
    }
    assert!(session.done(["--help"]).contains("doctor"));
    assert!(session.done(["--version"]).starts_with("loopbox 0."));
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    let session = Session::new(User::Ordinary, "pages");
    let help = session.done(["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<&str> = commands
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.contains(&"doctor"), "{commands:?}");
    let pages = session.join("pages");
    session.done(["man".as_ref(), pages.as_os_str()]);
    for shell in ["bash", "zsh", "fish"] {
        let text = session.done(["completions", shell]);
        for command in &commands {
            assert!(text.contains(command), "{shell}: {command}");
        }
    }
    for command in commands {
        let page = std::fs::read_to_string(pages.join(format!("loopbox-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH DESCRIPTION"), "{command}: {page}");
    }
}
