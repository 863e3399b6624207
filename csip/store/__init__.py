"""What a store is made of. `csip.tables` is the door: nothing else imports from here."""
