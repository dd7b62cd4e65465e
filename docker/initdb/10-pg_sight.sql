-- When a cluster is made: in the database POSTGRES_DB.
CREATE EXTENSION pg_sight CASCADE;
