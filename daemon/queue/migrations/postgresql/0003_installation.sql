-- An id of this queue's own: by it daemons know which of them share it.
CREATE TABLE installation (id text NOT NULL PRIMARY KEY CHECK (length(id) = 32));

INSERT INTO installation (id) VALUES (replace(gen_random_uuid()::text, '-', ''));
