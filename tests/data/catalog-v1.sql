-- A catalog of schema 1, as the first volhost made it. Never to be changed: it stands for the files that are out there.
PRAGMA application_id = 0x76686374;
CREATE TABLE volumes (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE mounts (volume TEXT, host TEXT, id TEXT, activation TEXT, record TEXT NOT NULL,
    PRIMARY KEY (volume, host, id, activation)) STRICT, WITHOUT ROWID;
CREATE TABLE removed (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE hosts (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE backends (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO volumes VALUES
    ('db', '{"v":1,"id":"0b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","backend":"fast","options":{"backend":"fast","mode":"0750","uid":"70"},"created_at":"2026-01-02T03:04:05.678Z","known_to":["web1","web2"]}'),
    ('old-data', '{"v":1,"id":"1b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","backend":"default","options":{"adopt":"true"},"created_at":"2026-01-02T03:04:05.678Z","adopted":true,"known_to":["anonymous"]}');
INSERT INTO mounts VALUES
    ('db', 'web1', 'fc63179f', '0', '{"v":1,"count":2,"since":"2026-01-02T03:04:06.000Z"}'),
    ('db', 'web1', 'fc63179f', '1', '{"v":1,"count":1,"since":"2026-01-02T03:04:07.000Z"}');
INSERT INTO removed VALUES
    ('2b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e', '{"v":1,"name":"db","at":"2026-01-01T00:00:00.000Z","volume":{"v":1,"id":"2b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","backend":"fast","created_at":"2025-12-31T23:59:59.999Z"}}');
INSERT INTO hosts VALUES
    ('web1', '{"v":1,"activation":1,"certificates":[{"serial":"a1","issued_at":"2026-01-02T03:04:05.678Z","not_after":"2036-01-02T03:04:05.678Z","revoked":true}],"revoked_at":"2026-01-02T03:04:05.678Z","last_seen":"2026-01-02T03:04:05.678Z"}');
INSERT INTO backends VALUES
    ('fast', '{"v":1,"id":"3b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","state":"established","mountpoint":"/mnt/fast/volumes"}'),
    ('new', '{"v":1,"id":"4b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","state":"initialising","mountpoint":"/srv/new"}');
PRAGMA user_version = 1;
