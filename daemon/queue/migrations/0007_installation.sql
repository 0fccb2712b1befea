-- An id of this queue's own: by it daemons know which of them share it.
CREATE TABLE installation (id TEXT NOT NULL PRIMARY KEY CHECK (length(id) = 32)) STRICT;

INSERT INTO installation (id) VALUES (lower(hex(randomblob(16))));
