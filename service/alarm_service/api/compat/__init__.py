"""Routes in the request formats of trainers that take only a URL."""
