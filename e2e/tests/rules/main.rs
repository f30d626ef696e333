//! Workspace rules: what the compiler does not check and a reviewer forgets. Each test is one rule, and its message
//! says what to do. They read files only.

#![forbid(unsafe_code)]

mod checkout;
mod files;
mod packages;
mod pages;

/// Fails with all violations at once, and with what to do about them.
fn hold(rule: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{rule}\n  {}\n", violations.join("\n  "));
}
