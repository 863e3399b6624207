"""The sections of `csip.config`, which is their door: nothing else imports from here."""
