"""What is signed with the service's secret: API keys and download links."""
